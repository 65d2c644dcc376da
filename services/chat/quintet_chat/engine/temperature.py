"""Llama 4's queries in layers without positions, which grow with their place in the text.

The model takes all sequences of a batch to be equally long. Here each has places of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _Places:
    """Where the tokens of the pass that is under way are, as the model's rotation was told: [batch, tokens]."""

    def __init__(self) -> None:
        self.now = torch.zeros(0)

    def note(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.now = args[1]


class ScaledQueries(nn.Module):
    """A projection to queries, and their scale (https://arxiv.org/abs/2501.19399): it grows by steps of tokens."""

    def __init__(self, linear: nn.Module, places: _Places, attention: Any) -> None:
        super().__init__()
        self.linear = linear
        self._places = places
        self._step, self._growth = attention.floor_scale, attention.attn_scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        queries: torch.Tensor = self.linear(hidden)
        steps = torch.floor((self._places.now.to(queries.device).float() + 1) / self._step)
        scales = torch.log1p(steps) * self._growth + 1
        scaled: torch.Tensor = queries * scales[..., None]
        return scaled.to(queries.dtype)


def scale_by_own_places(model: Any) -> None:
    """Let the layers of ``model`` that scale their queries by places do so for each sequence by its own. In place."""
    layers = [
        module
        for module in model.modules()
        if getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True)
    ]
    if not layers:
        return
    places = _Places()
    rotation = next(module.rotary_emb for module in model.modules() if hasattr(module, "rotary_emb"))
    rotation.register_forward_pre_hook(places.note)
    for attention in layers:
        attention.q_proj = ScaledQueries(attention.q_proj, places, attention)
        attention.attn_temperature_tuning = False
