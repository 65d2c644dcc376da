"""What is in the weights' files, by their headers: nothing is loaded, and no framework is needed.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header as JSON, which has every
tensor's type, shape and place behind it. A file that is shorter or longer than its header says is damaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quintet_common.tensor import Tensor

_MAX_HEADER = 100 << 20
"""Bytes; what safetensors itself allows."""

NO_JSON = (ValueError, RecursionError)
"""What Python raises for text that is no JSON, or that is nested deeper than it reads."""

_POINTER = b"version https://git-lfs"
"""How the stand-in begins that git leaves for a large file without LFS."""


def tensors(file: Path) -> list[Tensor]:
    """Every tensor of a safetensors file. Raises OSError that names ``file`` where its header cannot be read."""
    _, header = _read(file)
    try:
        found = [Tensor(name, each["dtype"], each["shape"]) for name, each in header.items()]
        if all(isinstance(tensor.dtype, str) and isinstance(tensor.elements, int) for tensor in found):
            return found
    except (KeyError, TypeError, AttributeError):
        pass
    raise _no_such_file(file)


def check_whole(file: Path) -> None:
    """Raises OSError that names ``file`` for one that is shorter or longer than its header says."""
    start, header = _read(file)
    try:
        end = start + max((int(each["data_offsets"][1]) for each in header.values()), default=0)
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError, IndexError):
        raise _no_such_file(file) from None
    size = file.stat().st_size
    if end > size:
        raise OSError(f"{file} is cut short: it has {size} bytes of {end}; fetch it again.")
    if end < size:
        raise OSError(f"{file} is damaged: it has {size - end} bytes more than its header says; fetch it again.")


def once(files: Iterable[Path]) -> list[Path]:
    """Without what is there a second time: a variant (``model.fp16.safetensors``) beside the model, or the maker's own
    layout (``consolidated``) beside that of transformers."""
    found = set(files)
    ordinary = {file.parent for file in found if not file.name.startswith("consolidated")}

    def again(file: Path) -> bool:
        if file.name.startswith("consolidated"):
            return file.parent in ordinary
        return ".fp16." in file.name and file.with_name(file.name.replace(".fp16.", ".")) in found

    return sorted(file for file in found if not again(file))


def _read(file: Path) -> tuple[int, dict[str, Any]]:
    """Where a file's header ends, and what it says of each tensor. Raises OSError."""
    with file.open("rb") as stream:
        start = stream.read(8)
        if start and _POINTER.startswith(start):
            raise OSError(f"{file} is the stand-in for a file that Git LFS has not fetched: git lfs pull.")
        length = int.from_bytes(start, "little")
        text = stream.read(min(length, _MAX_HEADER))
        if text.startswith(b"{") and len(text) < length <= _MAX_HEADER:
            raise OSError(f"{file} is cut short: it ends within its header; fetch it again.")
        try:
            header = json.loads(text)
            header.pop("__metadata__", None)
        except (*NO_JSON, TypeError, AttributeError):
            raise _no_such_file(file) from None
        return 8 + length, header


def _no_such_file(file: Path) -> OSError:
    return OSError(f"{file} is no safetensors file.")
