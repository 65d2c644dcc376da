"""Around a forward pass: which failures concern a batch, and which the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from quintet_embed.backends.base import DeviceLost


@contextmanager
def guarded(device: torch.device) -> Iterator[None]:
    """Memory that ran out is given back, so that smaller batches can be tried; any other CUDA error ends the process,
    because everything after it on that device would fail too."""
    try:
        yield
    except torch.OutOfMemoryError:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise
    except torch.AcceleratorError as error:
        raise DeviceLost(str(error)) from error
