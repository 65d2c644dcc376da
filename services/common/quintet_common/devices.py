"""Which device a model runs on. For workers: this imports torch."""

from __future__ import annotations

import logging

import torch

from quintet_common.entries import ModelSpec
from quintet_common.worker.host import LoadError

log = logging.getLogger("quintet")


def pick_device(spec: ModelSpec) -> torch.device:
    """``auto`` is the first GPU that ``memory`` names, else the first there is, else the CPU. Raises LoadError."""
    if spec.device == "auto":
        if not torch.cuda.is_available():
            if any(isinstance(key, int) for key in spec.memory):
                log.warning("%s: memory grants it a GPU, and there is none here: it runs on the CPU.", spec.id)
            return torch.device("cpu")
        named = [key for key in spec.memory if isinstance(key, int)]
        return _there(torch.device("cuda", named[0] if named else 0), "memory")
    try:
        device = torch.device(spec.device)
    except RuntimeError:
        raise LoadError(f"device {spec.device!r} is not known; it is auto, cpu, or like cuda:0.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"device: {spec.device}: there is no CUDA device here.")
    return _there(device, "device") if device.type == "cuda" else device


def _there(device: torch.device, key: str) -> torch.device:
    """Raises LoadError for a GPU that there is not; torch would say so in many lines, when it is used."""
    if (device.index or 0) < (count := torch.cuda.device_count()):
        return device
    raise LoadError(f"{key}: GPU {device.index} is not there; {count} {'is' if count == 1 else 'are'}, counted from 0.")


def bfloat16_pays(device: torch.device) -> bool:
    """Whether matrices are multiplied faster in bfloat16 than in float32: on GPUs, and on CPUs with instructions for
    it, which are AVX512-BF16 and AMX of x86, BF16 and SVE-BF16 of ARM. Without, torch converts each number."""
    if device.type != "cpu":
        return True
    has = torch.cpu.get_capabilities()
    return any(bool(has.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
