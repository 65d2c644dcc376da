"""What a model's weights take in memory, from its files' headers: nothing is loaded, and no framework is needed.

Of other formats than safetensors only the size of the file is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from quintet_common import checkpoint, embedded, expansion, headers, layout
from quintet_common.entries import ModelSpec
from quintet_common.sizes import parse_bytes
from quintet_common.tensor import Tensor

_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.onnx", "*.gguf")


@dataclass(frozen=True)
class Weights:
    """Of one model: ``tensors`` as they are stored, or ``others``, bytes in files that have no header to read."""

    tensors: list[Tensor]
    others: int = 0

    def loaded_as(self, dtype: str) -> int:
        """Bytes in memory. ``auto`` is the least that it may be: 16 bits where more are stored."""
        return sum(tensor.as_type(dtype) for tensor in self.tensors) // 8 + self.others


def weights_in(folder: Path) -> Weights | None:
    """The weights in ``folder`` and the parts of it; None where there are none to be seen. Raises OSError."""
    files = headers.once(layout.files(folder, "*.safetensors"))
    if files:
        tensors = [tensor for file in files for tensor in headers.tensors(file)]
        return Weights(tensors) if any(tensor.elements for tensor in tensors) else None
    found = next((files for glob in _OTHER_FORMATS if (files := list(layout.files(folder, glob)))), [])
    others = sum(file.stat().st_size for file in found)
    return Weights([], others) if others else None


def needed(spec: ModelSpec) -> int | None:
    """Bytes of the model's weights in memory; None where its files are not at hand. Raises OSError for broken files."""
    if spec.embedded is not None:
        return _of_embedded(spec)
    folder = Path(spec.path).expanduser()
    weights = weights_in(folder) if folder.is_dir() else None
    if weights is None:
        return None
    if spec.kind in checkpoint.KINDS and weights.tensors:
        return _of_language_model(spec, weights)
    return weights.loaded_as(spec.dtype)


def _of_embedded(spec: ModelSpec) -> int | None:
    known = embedded.EMBEDDED.get(spec.embedded or "")
    if known is None or not (known.weights or known.others) or spec.engine_args.get("quantization"):
        return None
    return Weights([Tensor("", "F32", [known.weights])], known.others).loaded_as(spec.dtype)


def _of_language_model(spec: ModelSpec, weights: Weights) -> int:
    config = checkpoint.config_of(spec)
    stored, asked = checkpoint.method(config), spec.engine_args.get("quantization")
    ours = not checkpoint.on_vllm(spec, config)
    if ours and stored in checkpoint.EXPANDED:
        return expansion.expanded(weights.tensors, spec.dtype, config)
    if ours and stored is None and asked in checkpoint.AT_LOAD:
        return expansion.quantised_at_load(weights.tensors, spec.dtype, asked)
    return weights.loaded_as(spec.dtype) if stored is None else expansion.as_stored(weights.tensors, spec.dtype)


def too_large(spec: ModelSpec) -> str | None:
    """Why the model of ``spec`` cannot fit into the memory that its entry grants; None where it may, or is not here."""
    size = needed(spec) if spec.memory else None
    granted = sum(parse_bytes(limit) for limit in spec.memory.values())
    if size is None or size <= granted:
        return None
    return f"the weights of {spec.id!r} need {in_words(size)}, but memory grants {in_words(granted)}."


def in_words(size: int) -> str:
    """Bytes as people write them: ``1.9 GB``."""
    power = min(4, max(0, int(math.log10(max(size, 1)) // 3)))
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
