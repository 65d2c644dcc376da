"""Linear layers whose weights lie in memory as oneDNN reads them, for models on CPUs. For workers: this imports torch.

The same numbers in another order. A decode step is bound by reading weights, and reads bfloat16 about twice as fast for
one sequence, a third faster for 32; float32 is twice as fast on AMD's CPUs, where torch's own choice is slow. Done once
at load, by the operator that torch's own compiler uses for frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn

WIDE = 1024
"""Of more inputs than this, oneDNN adds up a single row in another order than several. It is computed twice then, which
costs nothing that can be measured, and gives the bits that it would give in any batch."""


class Product:
    """The products of linear layers that read the same input, side by side: one packed weight."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        self.width, biases = linears[0].in_features, [linear.bias for linear in linears]
        weights = [linear.weight.detach() for linear in linears]
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(
            torch.cat(weights) if len(weights) > 1 else weights[0]
        )
        self._bias = None if all(bias is None for bias in biases) else _joined(linears)

    @property
    def stretch(self) -> tuple[int, int]:
        """Where the weight lies: address and bytes."""
        return torch.ops.mkldnn.data_ptr(self.weight), torch.ops.mkldnn._nbytes(self.weight)

    def __call__(self, hidden: Tensor) -> Tensor:
        """``hidden`` [..., width] times the weights, plus the biases."""
        if self.width > WIDE and hidden.dim() > 1 and hidden.numel() == self.width:
            return self._of(hidden.expand(2, *hidden.shape[1:]))[:1]
        return self._of(hidden)

    def _of(self, hidden: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self._bias, "none", [], "")
        return out


def _joined(linears: list[nn.Linear]) -> Tensor:
    """The biases of ``linears``, zeros where there is none."""
    return torch.cat(
        [
            linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
            for linear in linears
        ]
    )


class PackedLinear(nn.Module):
    """An ``nn.Linear`` on a CPU, packed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Neither a buffer nor a parameter: a packed weight cannot be saved or moved.
        self.products = [Product([linear])]

    @property
    def weight(self) -> Tensor:
        """For those that ask for its type and shape."""
        return self.products[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.products[0](hidden)


Replaced = list[tuple[nn.Module, str, nn.Linear]]
"""Parents, the names of their children, and what these were."""

_PLAIN: Mapping[type[nn.Linear], type[PackedLinear]] = {nn.Linear: PackedLinear}


def pack(
    model: nn.Module,
    kinds: Mapping[type[nn.Linear], type[PackedLinear]] = _PLAIN,
    wanted: Callable[[str], bool] = lambda _path: True,
) -> Replaced:
    """Replace the linear layers of ``model`` that can be packed, and whose path is ``wanted``, in place.

    ``kinds`` says what takes the place of which class. Returns what was replaced, for ``put_back``.
    """
    found: Replaced = [
        (parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent.named_children()
        if can_be_packed(child, kinds) and wanted(f"{path}.{name}")
    ]
    for parent, name, child in found:
        setattr(parent, name, kinds[type(child)](child))
    return found


def put_back(replaced: Replaced) -> None:
    for parent, name, child in replaced:
        setattr(parent, name, child)


def can_be_packed(module: nn.Module, kinds: Container[type[nn.Linear]] = (nn.Linear,)) -> TypeGuard[nn.Linear]:
    """Whether it is a layer of these classes on a CPU that stays there; quantised and offloaded ones are not.

    Libraries that quantise, and those that offload, hang what they do about a layer onto the layer itself.
    """
    hooked = "forward" in vars(module) or module._forward_pre_hooks or module._forward_hooks
    if type(module) not in kinds or hooked or module.weight.device.type != "cpu":
        return False
    if module.weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return module.weight.dtype == torch.float32 and torch._C._has_mkldnn
