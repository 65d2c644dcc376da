"""Linear layers with weights of one byte: half the memory of bfloat16, for text encoders on small GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Int8Linear(nn.Module):
    """``y = x W' + b`` with W kept as int8, one scale per output (symmetric, absolute maximum).

    The input may be of any floating type; sums are made in it. Weights only: activations are not rounded.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        exact = linear.weight.detach().float()
        scale = exact.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (exact / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0].to(linear.weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        product = functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias


def quantise(model: Any) -> None:
    """Replace the linear layers of ``model`` where they stand, one after the other; adapters on them stay exact."""
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and "lora_" not in f"{parent_name}.{name}":
                setattr(parent, name, Int8Linear(child))
