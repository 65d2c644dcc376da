"""Linear layers whose weights lie in memory as oneDNN reads them fastest, for bfloat16 on a CPU.

The same numbers in another order: a decode step is bound by reading weights, and reads them about twice as fast for one
sequence, a third faster for 32. Done once at load, by the operator that torch's own compiler uses for frozen weights.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from quintet_chat.backends import hugepages

WIDE = 1024
"""Of more inputs than this, oneDNN adds up a single row in another order than several. It is computed twice then, which
costs nothing that can be measured, and gives the bits that it would give in any batch."""


class Product:
    """The products of linear layers that read the same input, side by side: one packed weight, in bfloat16 on a CPU."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        self.width, biases = linears[0].in_features, [linear.bias for linear in linears]
        weights = [linear.weight.detach() for linear in linears]
        self.weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights) if len(weights) > 1 else weights[0])
        self._bias = None if all(bias is None for bias in biases) else _joined(linears)

    @property
    def stretch(self) -> tuple[int, int]:
        """Where the weight lies: address and bytes."""
        return torch.ops.mkldnn.data_ptr(self.weight), torch.ops.mkldnn._nbytes(self.weight)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.width > WIDE and hidden.dim() > 1 and hidden.numel() == self.width:
            return self._of(hidden.expand(2, *hidden.shape[1:]))[:1]
        return self._of(hidden)

    def _of(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self._bias, "none", [], "")
        return out


def _joined(linears: list[nn.Linear]) -> torch.Tensor:
    """The biases of ``linears``, zeros where there is none."""
    return torch.cat(
        [
            linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
            for linear in linears
        ]
    )


class PackedLinear(nn.Module):
    """An ``nn.Linear`` in bfloat16 on a CPU, packed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Neither a buffer nor a parameter: a packed weight cannot be saved or moved.
        self.products = [Product([linear])]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.products[0](hidden)


def pack(model: nn.Module) -> int:
    """Pack the linear layers of ``model`` in place where that is possible; the number of those that were."""
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if can_be_packed(child)
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    products = [product for module in model.modules() for product in getattr(module, "products", [])]
    if products:
        # The weights' file stays mapped, all of it, as long as any tensor lies in it.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        hugepages.advise(product.stretch for product in products)
    return len(found)


def can_be_packed(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a plain linear layer on a CPU that stays there; quantised and offloaded ones are not.

    Libraries that quantise, and those that offload, hang what they do about a layer onto the layer itself.
    """
    hooked = "forward" in vars(module) or module._forward_pre_hooks or module._forward_hooks
    if type(module) is not nn.Linear or hooked:
        return False
    on_cpu = module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"
    return on_cpu and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
