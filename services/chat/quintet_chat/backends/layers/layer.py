"""A decoder layer, put together of norms, attention and a feed-forward network."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from quintet_chat.backends.layers import attention, feed
from quintet_chat.backends.layers.attention import Angles, Attention, Rotation, Turn
from quintet_chat.backends.layers.feed import Feed
from quintet_chat.backends.layers.norm import norm_like, unchanged


class _Norms(NamedTuple):
    """Names of the norms before and after attention, and before and after the feed-forward network."""

    before: str | None
    after: str | None
    feed_before: str | None
    feed_after: str | None


_BUILDS = (
    _Norms("input_layernorm", None, "post_attention_layernorm", None),
    _Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    _Norms("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    _Norms(
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
    ),
)  # fmt: skip
"""Llama's and most others'; OLMo 2's; GLM-4-0414's; Gemma's."""


def _parts(module: nn.Module) -> set[str]:
    """The names of its children, but for those that do nothing once a model is trained."""
    return {name for name, child in module.named_children() if not isinstance(child, nn.Dropout | nn.Identity)}


def norms_of(layer: Any) -> _Norms | None:
    """How ``layer`` is built, if it is in one of our ways and its attention too."""
    by_parts = {frozenset({"self_attn", "mlp", *filter(None, norms)}): norms for norms in _BUILDS}
    norms = by_parts.get(frozenset(_parts(layer)))
    return norms if norms and _parts(layer.self_attn) in attention.PARTS else None


def has_usual_feed(layer: Any) -> bool:
    """Whether its feed-forward network is one of ours; else, with experts for example, it stays what it is."""
    return _parts(layer.mlp) in feed.PARTS


class FusedLayer(nn.Module):
    """What ``layer`` computes, if its positions are this ``rotation``.

    Raises AttributeError for one of another build, Different for norms of another kind.
    """

    def __init__(self, layer: Any, rotation: Rotation, turn: Turn) -> None:
        super().__init__()
        norms = norms_of(layer)
        if norms is None:
            raise AttributeError("a layer of another build")
        # None is a module or a parameter: their calls and their attributes cost more than some operations.
        self._before, self._after, self._feed_before, self._feed_after = (
            norm_like(getattr(layer, name)) if name else unchanged for name in norms
        )
        self.attend = Attention(layer.self_attn, rotation, turn)
        self.products = list(self.attend.products)
        self.feed = Feed(layer.mlp) if has_usual_feed(layer) else layer.mlp
        if isinstance(self.feed, Feed):
            self.products += self.feed.products
        share = getattr(layer, "residual_multiplier", 1.0)
        self._sum = _sum if share == 1 else partial(torch.add, alpha=share)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: Angles | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        assert position_embeddings is not None
        normed = self._before(hidden_states)
        seen = self._after(self.attend(normed, attention_mask, position_embeddings, past_key_values))
        middle = self._sum(hidden_states, seen)
        return self._sum(middle, self._feed_after(self.feed(self._feed_before(middle))))


def _sum(residual: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return new.add_(residual)
