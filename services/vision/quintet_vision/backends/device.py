"""In which type a model runs, and what its libraries say meanwhile."""

from __future__ import annotations

import torch
from quintet_common.devices import bfloat16_pays

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
