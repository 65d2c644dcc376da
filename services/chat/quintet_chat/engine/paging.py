"""Whether slots are made of blocks, and what a device can do with them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.attention.varlen import varlen_attn

from quintet_chat.engine.flash import Kernel
from quintet_chat.engine.padded import Graphs, Record

BLOCK = 256
"""Tokens per block: FlashAttention 2 reads blocks of multiples of this alone."""


class Paging(NamedTuple):
    """Slots made of blocks. What is named here is used once a trial has shown that it works (trial.py)."""

    block: int = BLOCK
    record: Record | None = None
    """How decode steps are recorded; None: they are not."""
    kernel: Kernel | None = None
    """What attention over blocks is computed with, of the signature of ``varlen_attn``; None: blocks are gathered."""

    @staticmethod
    def of(model: Any, device: torch.device) -> Paging | None:
        """For ``model``, whose embeddings are on ``device``. On a CPU slots are not made of blocks."""
        if device.type == "cpu":
            return None
        if device.type != "cuda":
            return Paging()
        devices = {parameter.device for parameter in model.parameters()}
        kernel = varlen_attn if model.dtype in (torch.float16, torch.bfloat16) else None
        return Paging(BLOCK, Graphs(device) if len(devices) == 1 else None, kernel)
