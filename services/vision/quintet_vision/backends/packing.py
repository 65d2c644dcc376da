"""Linear layers as oneDNN runs them, on CPUs: in float32 on AMD's more than twice as fast as what torch itself calls.

The same numbers, with the weights in another order, written once at load. Sums are made in another order, too, so a
picture may differ from the unpacked network's by a rounding here and there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """``y = x W' + b`` as an ``nn.Linear`` computes it, with the weight in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Neither a buffer nor a parameter: a packed weight cannot be saved or moved.
        self._packed = [torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())]
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @property
    def weight(self) -> Tensor:
        """For those that ask for its type and shape."""
        packed: Tensor = self._packed[0]
        return packed

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed[0], self.bias, "none", [], "")
        return product


def pack(model: Any) -> None:
    """Replace the linear layers of ``model``, which is on a CPU to stay, where they stand; adapters on them stay."""
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and "lora_" not in f"{parent_name}.{name}" and _can_be_packed(child):
                setattr(parent, name, PackedLinear(child))


def _can_be_packed(linear: nn.Linear) -> bool:
    if linear.weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if linear.weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return linear.weight.dtype == torch.float32
