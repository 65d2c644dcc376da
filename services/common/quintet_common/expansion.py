"""What the weights of a language model take in memory when they are quantised, in their files or as they are loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from quintet_common import checkpoint
from quintet_common.tensor import LOADED_BITS, PLAIN, Tensor

_AT_LOAD = {"int8": (8, 0), "int4": (4, 32 / 64)}
"""bitsandbytes: bits of a weight, and those of the scales for each, which int4 has for 64 together."""

_ROW_SCALE = 32
"""Bits of what int8 has for each output."""

_STAYS = re.compile(r"embed|\bwte\b|\bwpe\b|lm_head|output_layer|\.experts\.|visual|vision|projector|connector")
"""Matrices that bitsandbytes leaves as they are."""

_SCALES = re.compile(r"_(scales?|scale_inv|zero_point|shape|g_idx)$|_scale$")


def quantised_at_load(tensors: Iterable[Tensor], dtype: str, setting: str) -> int:
    """Bytes when bitsandbytes quantises the linear layers on the way."""
    each, scales = _AT_LOAD[setting]
    bits = 0.0
    for tensor in tensors:
        if tensor.dtype in PLAIN and len(tensor.shape) == 2 and not _STAYS.search(tensor.name):
            bits += tensor.elements * (each + scales) + (tensor.shape[0] * _ROW_SCALE if setting == "int8" else 0)
        else:
            bits += tensor.as_type(dtype)
    return int(bits) // 8


def as_stored(tensors: Iterable[Tensor], dtype: str) -> int:
    """Bytes when what is quantised stays so: layers that are not are converted, scales are not."""

    def is_plain(tensor: Tensor) -> bool:
        return tensor.dtype in PLAIN and tensor.name.endswith((".weight", ".bias"))

    return sum(tensor.as_type(dtype) if is_plain(tensor) else tensor.bits for tensor in tensors) // 8


def expanded(tensors: Iterable[Tensor], dtype: str, config: dict[str, Any]) -> int:
    """Bytes when transformers makes plain numbers of quantised ones, for the methods of ``checkpoint.EXPANDED``."""
    wanted, packed = LOADED_BITS.get(dtype, 16), _packed_bits(config)
    bits = 0
    for tensor in tensors:
        if tensor.name.endswith(("_packed", "_blocks")):
            bits += tensor.bits // packed * wanted
        elif not _SCALES.search(tensor.name):
            bits += tensor.as_type(dtype) if tensor.dtype in PLAIN else tensor.elements * wanted
    return bits // 8


def _packed_bits(config: dict[str, Any]) -> int:
    """Of a weight that shares its number with others; of several sorts the smallest, which comes to most."""
    groups = checkpoint.settings(config).get("config_groups")
    weights = [group.get("weights") for group in _values(groups) if isinstance(group, dict)]
    found = [each.get("num_bits") for each in weights if isinstance(each, dict)]
    return min((bits for bits in found if isinstance(bits, int) and bits > 0), default=4)


def _values(found: Any) -> list[Any]:
    return list(found.values()) if isinstance(found, dict) else []
