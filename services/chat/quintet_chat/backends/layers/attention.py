"""Attention: queries, keys and values by one product, normed and turned by their positions together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from quintet_common.packing import Product
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quintet_chat.backends.layers.norm import norm_like, unchanged
from quintet_chat.engine.slots import QUERIES

PARTS = (
    {"q_proj", "k_proj", "v_proj", "o_proj"},
    {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"},
    {"qkv_proj", "o_proj"},
)
"""Names of the children of what is built so, each time all of them."""

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [batch, tokens, dimensions], as a model hands them to its layers."""


class Rotation(NamedTuple):
    """Which of a head's dimensions are turned, in couples."""

    dimensions: int
    """So many, from the first on; the others are passed on."""
    neighbours: bool = False
    """Whether dimensions 0 and 1 are a couple, 2 and 3 and so on; else those of the first half with the second's."""

    def order(self, size: int) -> torch.Tensor:
        """Where the dimensions of a head of ``size`` come from, so that the couples are halves.

        The products of queries with keys are the same in any order. So weights are put into this one at load.
        """
        turned = torch.arange(self.dimensions)
        if self.neighbours:
            turned = turned.view(-1, 2).T.flatten()
        return torch.cat([turned, torch.arange(self.dimensions, size)])


class Turn:
    """Cosines and sines of a pass's positions, which all of its layers share: made ready by the first of them."""

    def __init__(self) -> None:
        self._ready: tuple[Angles | None, torch.Tensor, torch.Tensor] = (None, torch.empty(0), torch.empty(0))

    def __call__(self, heads: torch.Tensor, angles: Angles) -> torch.Tensor:
        """``heads`` [batch, heads, tokens, size], turned by ``angles``: halves of the dimensions that these have."""
        given, cosines, sines = self._ready
        if given is not angles:
            cosines, sines = (each[:, None] for each in angles)
            half = sines.shape[-1] // 2
            sines = torch.cat((-sines[..., :half], sines[..., half:]), -1)
            cosines = pad(cosines, (0, heads.shape[-1] - cosines.shape[-1]), value=1.0)
            self._ready = angles, cosines, sines
        dimensions, kind = sines.shape[-1], heads.dtype
        heads = heads.to(sines.dtype)  # some models keep their angles in float32
        turned = heads * cosines
        if dimensions == heads.shape[-1]:
            turned.add_(heads.roll(dimensions // 2, -1).mul_(sines))
        else:
            turned[..., :dimensions].add_(heads[..., :dimensions].roll(dimensions // 2, -1).mul_(sines))
        return turned.to(kind)


class Attention:
    """What ``attention`` computes, if its positions are this ``rotation``. Raises AttributeError for another build."""

    is_causal = True

    def __init__(self, attention: Any, rotation: Rotation, turn: Turn) -> None:
        self.layer_idx: int = attention.layer_idx
        self.num_key_value_groups: int = attention.num_key_value_groups
        self._size: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._queries = attention.o_proj.in_features // self._size
        self._keys = self._queries // self.num_key_value_groups
        self._spare = max(QUERIES - self.num_key_value_groups, 0)
        self._turn = turn if rotation.dimensions else None
        order = rotation.order(self._size)
        self._norm = self._norm_of(attention, order)
        self._qkv = Product([self._joined(attention, order)])
        self._out = Product([attention.o_proj])
        self.products = [self._qkv, self._out]

    def _joined(self, attention: Any, order: torch.Tensor) -> nn.Linear:
        """The projections to queries, keys and values as one, the dimensions of the first two in this ``order``."""
        names = ("qkv_proj",) if hasattr(attention, "qkv_proj") else ("q_proj", "k_proj", "v_proj")
        linears = [getattr(attention, name) for name in names]
        turned = self._queries + self._keys
        rows = torch.cat([_heads(turned, order), torch.arange(turned * self._size, (turned + self._keys) * self._size)])
        joined = nn.Linear(linears[0].in_features, len(rows), bias=False, device="meta")
        joined.weight = nn.Parameter(torch.cat([each.weight for each in linears])[rows], requires_grad=False)
        if any(each.bias is not None for each in linears):
            biases = [each.weight.new_zeros(each.out_features) if each.bias is None else each.bias for each in linears]
            joined.bias = nn.Parameter(torch.cat(biases)[rows], requires_grad=False)
        return joined

    def _norm_of(self, attention: Any, order: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The norm of queries and keys, [batch, tokens, heads, size]: of each head, or of all that a token has."""
        if not hasattr(attention, "q_norm"):
            return unchanged
        queries, keys = norm_like(attention.q_norm), norm_like(attention.k_norm)
        if queries.weight.shape == keys.weight.shape == order.shape:
            weights = [queries.weight[order].expand(self._queries, -1), keys.weight[order].expand(self._keys, -1)]
            return queries.with_weight(torch.cat(weights))
        count = self._queries
        queries = queries.with_weight(queries.weight[_heads(count, order)])
        keys = keys.with_weight(keys.weight[_heads(self._keys, order)])

        def both(heads: torch.Tensor) -> torch.Tensor:
            normed = queries(heads[:, :, :count].flatten(2)), keys(heads[:, :, count:].flatten(2))
            return torch.cat(normed, -1).view(heads.shape)

        return both

    def __call__(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, angles: Angles, cache: Any = None
    ) -> torch.Tensor:
        """Attention of ``hidden`` [batch, tokens, width] to itself and to what is in the cache."""
        batch, tokens, _ = hidden.shape
        heads = self._qkv(hidden).view(batch, tokens, -1, self._size)
        turned, values = self._norm(heads[:, :, : -self._keys]).transpose(1, 2), heads[:, :, -self._keys :]
        if self._turn is not None:
            turned = self._turn(turned, angles)
        queries, keys, values = turned[:, : self._queries], turned[:, self._queries :], values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer_idx)
        if tokens == 1:
            # The queries of one key are as many tokens to the operator: nothing is repeated.
            grouped = pad(queries.reshape(batch, self._keys, -1, self._size), (0, 0, 0, self._spare))
            seen = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=self._scaling)
            seen = seen[:, :, : self.num_key_value_groups]
        else:
            attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
            seen, _ = attention(self, queries, keys, values, mask, scaling=self._scaling)
        return self._out(seen.reshape(batch, tokens, -1))


def _heads(count: int, order: torch.Tensor) -> torch.Tensor:
    """The rows of ``count`` heads one behind the other, those of each in this ``order``."""
    return (torch.arange(count)[:, None] * len(order) + order).flatten()
