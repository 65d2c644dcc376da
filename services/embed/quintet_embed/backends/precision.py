"""Which numbers a model computes in.

On a CPU with bf16 instructions only the matrix products are bf16, everything between them stays float32: as fast as a
model that is bf16 throughout (some 3 times float32), with vectors nearer to float32's (MiniLM, least cosine over 157
texts: 0.99993 against 0.99986).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from quintet_common.devices import bfloat16_pays
from quintet_common.packing import PackedLinear, pack, put_back
from torch import Tensor, nn
from torch.nn import functional

log = logging.getLogger("quintet.embed")

_NAMED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Bf16Linear(nn.Linear):
    """A linear layer with bf16 weights between float32 activations."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input.to(torch.bfloat16), self.weight, self.bias).float()


class Bf16Inner(Bf16Linear):
    """One whose result stays bf16, because only an activation function is between it and the next linear layer: there
    it would be rounded to the same numbers. The two conversions that this saves are the widest of a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input.to(torch.bfloat16), self.weight, self.bias)


class PackedBf16Linear(PackedLinear):
    """A Bf16Linear, packed."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(torch.bfloat16)).float()


class PackedBf16Inner(PackedLinear):
    """A Bf16Inner, packed."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(torch.bfloat16))


_PACKED = {nn.Linear: PackedLinear, Bf16Linear: PackedBf16Linear, Bf16Inner: PackedBf16Inner}


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype for a setting of models.yml; None leaves it to the checkpoint, as ``auto`` does on a GPU."""
    if name != "auto":
        return _NAMED[name]
    if device.type != "cpu":
        return None
    return torch.bfloat16 if bfloat16_pays(device) else torch.float32


def load_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype | str:
    """What to load the weights as. Those of a CPU model come whole, to be rounded once and only where it pays."""
    if dtype is None:
        return "auto"
    return torch.float32 if _mixed(dtype, device) else dtype


def apply_dtype(model: Any, dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Bring a loaded model to its dtype, in place; returns that dtype."""
    if dtype is None:
        dtype = next(model.parameters()).dtype
        if dtype == torch.float32:
            dtype = torch.float16
            model.to(dtype)
    elif _mixed(dtype, device):
        for module in model.modules():
            if type(module) is nn.Linear:  # a subclass may have a precision of its own for a reason
                module.to(torch.bfloat16)
                module.__class__ = Bf16Linear
        for module in model.modules():
            # BERT's and all that are built like it: dense, intermediate_act_fn, then the dense of the next module.
            inner = getattr(module, "dense", None) if hasattr(module, "intermediate_act_fn") else None
            if type(inner) is Bf16Linear:
                inner.__class__ = Bf16Inner
    return dtype


def _mixed(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.bfloat16 and device.type == "cpu"


def warm_up(model: Any, trial: Callable[[], object]) -> None:
    """Pack what lies on a CPU and run ``trial``; a model that does not run over packed layers is left as it was."""
    replaced = pack(model, _PACKED)
    try:
        trial()
    except Exception:
        if not replaced:
            raise
        log.info("its layers cannot be packed", exc_info=True)
        put_back(replaced)
        trial()
