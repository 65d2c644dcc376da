"""Gated feed-forward networks, with gate and up as one product."""

from __future__ import annotations

from typing import Any

import torch
from quintet_common.packing import Product

PARTS = (
    {"gate_proj", "up_proj", "down_proj", "act_fn"},
    {"gate_up_proj", "down_proj", "activation_fn"},
)
"""Names of the children of what is built so, each time all of them."""


class Feed:
    """What ``mlp``, a module with one of these sets of parts, computes of [..., width]."""

    def __init__(self, mlp: Any) -> None:
        joined = hasattr(mlp, "gate_up_proj")
        self._gate_up = Product([mlp.gate_up_proj] if joined else [mlp.gate_proj, mlp.up_proj])
        self._down = Product([mlp.down_proj])
        self._act = (mlp.activation_fn if joined else mlp.act_fn).forward
        self.products = [self._gate_up, self._down]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self._gate_up(hidden).chunk(2, -1)
        return self._down(self._act(gate).mul_(up))
