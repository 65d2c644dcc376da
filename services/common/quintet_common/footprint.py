"""What a model's weights take in memory, from its files' headers: nothing is loaded, and no framework is needed.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header as JSON, which has every
tensor's type and shape. Of other formats only the size of the file is known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet_common.models_yml import ModelSpec
from quintet_common.sizes import parse_bytes

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
"""Types that are converted to the type in which a model is loaded."""

_OTHER_BITS = {"I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8}
_LOADED_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.onnx", "*.gguf")
_MAX_HEADER = 100 << 20
"""Bytes; what safetensors itself allows."""


@dataclass(frozen=True)
class Weights:
    """Of one model: ``floats`` are how many there are of so many bits each; ``others`` stay as they are, in bytes."""

    floats: dict[int, int]
    others: int

    def loaded_as(self, dtype: str) -> int:
        """Bytes in memory. ``auto`` is the least that it may be: 16 bits where more are stored."""
        wanted = _LOADED_BITS.get(dtype)
        bits = sum(count * (wanted or min(stored, 16)) for stored, count in self.floats.items())
        return bits // 8 + self.others


def weights_in(folder: Path) -> Weights | None:
    """The weights in ``folder`` and the folders in it; None where there are none to be seen. Raises OSError."""
    floats: dict[int, int] = {}
    others = 0
    files = _once(path for path in folder.rglob("*.safetensors") if path.is_file())
    for file in files:
        for stored, count in _tensors(file):
            if stored in _BITS:
                floats[_BITS[stored]] = floats.get(_BITS[stored], 0) + count
            else:
                others += count * _OTHER_BITS.get(stored, 8) // 8
    if not files:
        found = next((files for glob in _OTHER_FORMATS if (files := list(folder.rglob(glob)))), [])
        others = sum(file.stat().st_size for file in found)
    return Weights(floats, others) if floats or others else None


def too_large(spec: ModelSpec) -> str | None:
    """Why the model of ``spec`` cannot fit into the memory that its entry grants; None where it may, or is not here."""
    folder = Path(spec.path).expanduser()
    if not spec.memory or spec.embedded is not None or not folder.is_dir():
        return None
    weights = weights_in(folder)
    granted = sum(parse_bytes(limit) for limit in spec.memory.values())
    if weights is None or weights.loaded_as(spec.dtype) <= granted:
        return None
    needed = in_words(weights.loaded_as(spec.dtype))
    return f"the weights of {spec.id!r} need {needed}, but memory grants {in_words(granted)}."


def in_words(size: int) -> str:
    """Bytes as people write them: ``1.9 GB``."""
    power = min(4, max(0, int(math.log10(max(size, 1)) // 3)))
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _once(files: Iterable[Path]) -> list[Path]:
    """Without what is there a second time: a variant (``model.fp16.safetensors``) beside the model, or the maker's own
    layout (``consolidated``) beside that of transformers."""
    found = set(files)
    ordinary = {file.parent for file in found if not file.name.startswith("consolidated")}

    def again(file: Path) -> bool:
        if file.name.startswith("consolidated"):
            return file.parent in ordinary
        return ".fp16." in file.name and file.with_name(file.name.replace(".fp16.", ".")) in found

    return sorted(file for file in found if not again(file))


def _tensors(file: Path) -> list[tuple[str, int]]:
    """Type and number of elements of every tensor. Raises OSError for what is no safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(stream.read(min(length, _MAX_HEADER)))
            header.pop("__metadata__", None)
            return [(each["dtype"], math.prod(each["shape"])) for each in header.values()]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OSError(f"{file} is no safetensors file.") from None
