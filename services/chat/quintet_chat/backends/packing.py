"""Linear layers whose weights lie in memory as oneDNN reads them fastest, for bfloat16 on a CPU.

The same numbers in another order: a decode step is bound by reading weights, and reads them about twice as fast for one
sequence, a third faster for 32. Done once at load, by the operator that torch's own compiler uses for frozen weights.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

WIDE = 1024
"""Of more inputs than this, oneDNN adds up a single row in another order than several. It is computed twice then, which
costs nothing that can be measured, and gives the bits that it would give in any batch."""


class PackedLinear(nn.Module):
    """An ``nn.Linear`` in bfloat16 on a CPU, packed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Not a buffer: a packed weight cannot be saved or moved.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.in_features > WIDE and hidden.dim() > 1 and hidden.numel() == self.in_features:
            return self._product(hidden.expand(2, *hidden.shape[1:]))[:1]
        return self._product(hidden)

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._packed, self.bias, "none", [], "")
        return out


def pack(model: nn.Module) -> int:
    """Pack the linear layers of ``model`` in place where that is possible; the number of those that were."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 0
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if _can_be_packed(child)
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    if found:
        # The weights' file stays mapped, all of it, as long as any tensor lies in it.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return len(found)


def _can_be_packed(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a plain linear layer on a CPU that stays there; quantised and offloaded ones are not."""
    if type(module) is not nn.Linear or hasattr(module, "_hf_hook"):
        return False
    return module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"
