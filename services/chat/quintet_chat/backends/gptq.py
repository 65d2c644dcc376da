"""Models with experts whose weights GPTQ quantised, as they are in their files: widened when a layer is computed.

transformers keeps the experts of a layer as one tensor, for which no library of quantised layers has a replacement.
Here each expert has its own layers again, under the names that such checkpoints have them. ``qweight`` [in / n, out]
has n numbers of ``bits`` in an int32, lowest bits first, ``qzeros`` [groups, out / n] likewise; a weight is
(number - zero) x scale, of the group that ``g_idx`` [in] gives its row. The first version of the format, which all
published models have, stores a zero less one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from quintet_common.worker.host import LoadError
from safetensors import safe_open
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "gptq_experts"
"""The ``quant_method`` by which transformers finds what is here."""

_BITS = (2, 4, 8)


class GptqLinear(nn.Module):
    """``x @ W.T + b`` of a quantised ``W`` [out, in]."""

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor

    def __init__(self, inputs: int, outputs: int, bits: int, group: int, bias: bool, stored_less: int) -> None:
        super().__init__()
        shared, groups = 32 // bits, -(-inputs // group)
        self.bits, self.stored_less = bits, stored_less
        self.register_buffer("qweight", torch.empty(inputs // shared, outputs, dtype=torch.int32))
        self.register_buffer("qzeros", torch.empty(groups, outputs // shared, dtype=torch.int32))
        self.register_buffer("scales", torch.empty(groups, outputs, dtype=torch.float16))
        self.register_buffer("g_idx", torch.empty(inputs, dtype=torch.int32))
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """``W`` in ``dtype``."""
        shifts = torch.arange(0, 32, self.bits, device=self.qweight.device, dtype=torch.int32)
        mask = 2**self.bits - 1
        numbers = (self.qweight[:, None] >> shifts[:, None] & mask).flatten(0, 1)
        zeros = (self.qzeros[..., None] >> shifts & mask).flatten(1) + self.stored_less
        widened: torch.Tensor = (numbers - zeros[self.g_idx]).to(dtype) * self.scales[self.g_idx].to(dtype)
        return widened.T

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(given.dtype)
        return nn.functional.linear(given, self.weight(given.dtype), bias)


class GptqExperts(nn.ModuleList):
    """The experts of a layer; takes what transformers' own take, and computes those alone that are asked for."""

    def __init__(self, experts: Sequence[nn.Module], activation: nn.Module) -> None:
        super().__init__(experts)
        self.act_fn = activation

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """``hidden`` [tokens, width]; the experts of each token and their shares [tokens, experts per token]."""
        total = torch.zeros_like(hidden)
        for number in torch.unique(chosen).tolist():
            tokens, ranks = torch.where(chosen == number)
            expert: Any = self[number]
            given = hidden[tokens]
            made = expert["down_proj"](self.act_fn(expert["gate_proj"](given)) * expert["up_proj"](given))
            total.index_add_(0, tokens, (made * shares[tokens, ranks, None]).to(total.dtype))
        return total


@register_quantization_config(METHOD)
class GptqExpertsConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The ``quantization_config`` of config.json."""

    def __init__(self, bits: Any = None, group_size: Any = None, **others: Any) -> None:
        if bits not in _BITS:
            raise LoadError(f"GPTQ with {bits} bits is not supported for experts; 2, 4 and 8 are.")
        if not isinstance(group_size, int) or (group_size < 1 and group_size != -1):
            raise LoadError(f"GPTQ in groups of {group_size} is not supported for experts; -1 is one group.")
        self.quant_method = METHOD
        self.bits, self.group_size = bits, group_size
        self.stored_less = 0 if others.get("checkpoint_format") == "gptq_v2" else 1


@register_quantizer(METHOD)
class GptqExpertsQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts quantised layers where the files have such, before they are read."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        stored = _quantised(kwargs["checkpoint_files"])
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name in stored:
                model.set_submodule(
                    name, self._linear(module.in_features, module.out_features, module.bias is not None)
                )
            elif f"{name}.0.gate_proj" in stored:
                model.set_submodule(name, self._experts(module))

    def _process_model_after_weight_loading(self, model: nn.Module, **_kwargs: Any) -> None:
        """Raises LoadError for a layer with rows of groups that it does not have."""
        for name, module in model.named_modules():
            if isinstance(module, GptqLinear):
                lowest, highest = (int(bound) for bound in module.g_idx.aminmax())
                last = len(module.scales) - 1
                if lowest < 0 or highest > last:
                    wrong = lowest if lowest < 0 else highest
                    raise LoadError(f"{name}.g_idx names the group {wrong}; the layer has the groups 0 to {last}.")

    def _linear(self, inputs: int, outputs: int, bias: bool = False) -> GptqLinear:
        config = self.quantization_config
        group = inputs if config.group_size == -1 else config.group_size
        return GptqLinear(inputs, outputs, config.bits, group, bias, config.stored_less)

    def _experts(self, module: Any) -> GptqExperts:
        count, width, inner = module.down_proj.shape
        shapes = {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
        made = [nn.ModuleDict({name: self._linear(*shape) for name, shape in shapes.items()}) for _ in range(count)]
        return GptqExperts(made, module.act_fn)

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False


def _quantised(files: Sequence[str]) -> set[str]:
    """The names of the layers that are quantised in ``files``."""
    found: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= {name.removesuffix(".qweight") for name in tensors.offset_keys() if name.endswith(".qweight")}
    return found
