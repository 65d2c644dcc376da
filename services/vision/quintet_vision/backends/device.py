"""In which type a model runs, and what its libraries say meanwhile."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def bfloat16_pays(device: torch.device) -> bool:
    """Whether matrices in bfloat16 are faster than in float32: on GPUs, and on CPUs with instructions for it."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def pick_dtype(asked: str, device: torch.device) -> torch.dtype:
    if asked != "auto":
        return DTYPES[asked]
    return torch.bfloat16 if bfloat16_pays(device) else torch.float32


def quiet_libraries() -> None:
    """Leave the worker's log to what concerns its reader; diffusers and transformers draw bars and report every key."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
