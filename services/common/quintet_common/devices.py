"""Which device a model runs on. For workers: this imports torch."""

from __future__ import annotations

import torch

from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError


def pick_device(spec: ModelSpec) -> torch.device:
    """``auto`` is the first GPU that ``memory`` names, else the first there is, else the CPU. Raises LoadError."""
    if spec.device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        named = [key for key in spec.memory if isinstance(key, int)]
        return torch.device("cuda", named[0] if named else 0)
    try:
        device = torch.device(spec.device)
    except RuntimeError:
        raise LoadError(f"device {spec.device!r} is not known; it is auto, cpu, or like cuda:0.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"device {spec.device!r}: there is no CUDA device here.")
    return device


def bfloat16_pays(device: torch.device) -> bool:
    """Whether matrices are multiplied faster in bfloat16 than in float32: on GPUs, and on CPUs with instructions for
    it, which are AVX512-BF16 and AMX of x86, BF16 and SVE-BF16 of ARM. Without, torch converts each number."""
    if device.type != "cpu":
        return True
    has = torch.cpu.get_capabilities()
    return any(bool(has.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
