"""What the weights of a language model take in memory when they are quantised, in their files or as they are loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from quintet_common import checkpoint

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""By the types of safetensors."""

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_CONVERTED = _PLAIN | {"F8_E4M3", "F8_E5M2"}
"""Types that are converted to the type in which a model is loaded, where they are not a way of quantising it."""

LOADED_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}

_AT_LOAD = {"int8": (8, 0), "int4": (4, 32 / 64)}
"""bitsandbytes: bits of a weight, and those of the scales for each, which int4 has for 64 together."""

_ROW_SCALE = 32
"""Bits of what int8 has for each output."""

_STAYS = re.compile(r"embed|\bwte\b|\bwpe\b|lm_head|output_layer|\.experts\.|visual|vision|projector|connector")
"""Matrices that bitsandbytes leaves as they are."""

_SCALES = re.compile(r"_(scales?|scale_inv|zero_point|shape|g_idx)$|_scale$")


class Tensor(NamedTuple):
    """As the header of a safetensors file has it."""

    name: str
    dtype: str
    shape: list[int]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        return self.elements * BITS.get(self.dtype, 8)

    def as_type(self, dtype: str) -> int:
        """Bits in memory in the type ``dtype``; ``auto`` is the least that it may be: 16 where more are stored."""
        if self.dtype not in _CONVERTED:
            return self.bits
        return self.elements * (LOADED_BITS.get(dtype) or min(BITS[self.dtype], 16))


def quantised_at_load(tensors: Iterable[Tensor], dtype: str, setting: str) -> int:
    """Bytes when bitsandbytes quantises the linear layers on the way."""
    each, scales = _AT_LOAD[setting]
    bits = 0.0
    for tensor in tensors:
        if tensor.dtype in _PLAIN and len(tensor.shape) == 2 and not _STAYS.search(tensor.name):
            bits += tensor.elements * (each + scales) + (tensor.shape[0] * _ROW_SCALE if setting == "int8" else 0)
        else:
            bits += tensor.as_type(dtype)
    return int(bits) // 8


def as_stored(tensors: Iterable[Tensor], dtype: str) -> int:
    """Bytes when what is quantised stays so: layers that are not are converted, scales are not."""

    def is_plain(tensor: Tensor) -> bool:
        return tensor.dtype in _PLAIN and tensor.name.endswith((".weight", ".bias"))

    return sum(tensor.as_type(dtype) if is_plain(tensor) else tensor.bits for tensor in tensors) // 8


def expanded(tensors: Iterable[Tensor], dtype: str, config: dict[str, Any]) -> int:
    """Bytes when transformers makes plain numbers of quantised ones, for the methods of ``checkpoint.EXPANDED``."""
    wanted, packed = LOADED_BITS.get(dtype, 16), _packed_bits(config)
    bits = 0
    for tensor in tensors:
        if tensor.name.endswith(("_packed", "_blocks")):
            bits += tensor.bits // packed * wanted
        elif not _SCALES.search(tensor.name):
            bits += tensor.as_type(dtype) if tensor.dtype in _PLAIN else tensor.elements * wanted
    return bits // 8


def _packed_bits(config: dict[str, Any]) -> int:
    """Of a weight that shares its number with others; of several sorts the smallest, which comes to most."""
    groups = checkpoint.settings(config).get("config_groups")
    weights = [group.get("weights") for group in _values(groups) if isinstance(group, dict)]
    found = [each.get("num_bits") for each in weights if isinstance(each, dict)]
    return min((bits for bits in found if isinstance(bits, int) and bits > 0), default=4)


def _values(found: Any) -> list[Any]:
    return list(found.values()) if isinstance(found, dict) else []
