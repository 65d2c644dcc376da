"""Transformer blocks with relative positions, as in Transformer-XL: for texts, for speech tokens, and for flow.

Shapes: B sentences, T positions, H heads of D channels, W = H x D. The attention of query i to key j is
((q_i + u) k_j + (q_i + v) p_(i-j)) / sqrt(D), with learned u and v and p projected from a table of sines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from quintet_tts.cosyvoice.settings import Section

BLOCK_EPS = 1e-12
"""Of the layer norms inside the blocks; the outer ones have torch's default."""


@dataclass(frozen=True)
class EncoderConfig:
    """``causal``: a position attends to itself and to what is before it. ``legacy``: the input goes through a ReLU."""

    input_size: int
    width: int
    heads: int
    inner: int
    blocks: int
    causal: bool
    legacy: bool
    activation: Literal["silu", "relu"]


def read_config(section: Section, legacy: bool) -> EncoderConfig:
    """The ``ConformerEncoder`` or, with ``legacy``, ``TransformerEncoder`` of a configuration. Raises LoadError."""
    section.require("normalize_before", [True])
    section.require("input_layer", ["linear_legacy" if legacy else "linear"])
    section.require("pos_enc_layer_type", ["rel_pos_espnet"])
    section.require("selfattention_layer_type", ["rel_selfattn"])
    section.require("static_chunk_size", [0, 1, -1])
    for option in ("use_cnn_module", "macaron_style", "use_dynamic_chunk", "use_dynamic_left_chunk"):
        section.require(option, [False])
    width, heads = section.integer("output_size"), section.integer("attention_heads")
    if width % heads or width % 2:
        raise section.error("attention_heads", f"is {heads}, which does not divide output_size")
    return EncoderConfig(
        input_size=section.integer("input_size"),
        width=width,
        heads=heads,
        inner=section.integer("linear_units"),
        blocks=section.integer("num_blocks"),
        causal=section.has("static_chunk_size") and section.number("static_chunk_size") == 1,
        legacy=legacy,
        activation="relu" if legacy else "silu",
    )


def sines(distances: Tensor, width: int) -> Tensor:
    """The position table [len(distances), width]: sine on even columns, cosine on odd ones, base 10000."""
    rates = torch.exp(torch.arange(0, width, 2, device=distances.device) * -(math.log(10000.0) / width))
    angles = distances.float().unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class RelativeAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, self.size))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, self.size))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, D] of x [B, T, W]."""
        query, key, value = (
            self._by_head(linear(x)).transpose(1, 2) for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        return query, key, value

    def positions(self, table: Tensor) -> Tensor:
        """A table [N, W] of sines as this attention's own [H, N, D]."""
        return self._by_head(self.linear_pos(table)).transpose(0, 1)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, self.size)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
        """The output [B, T, W]; ``scores`` are those of the positions, [B, H, T, T'], before the division."""
        content = query + self.pos_bias_u.unsqueeze(1)
        bias = scores / math.sqrt(self.size)
        attended = functional.scaled_dot_product_attention(content, key, value, attn_mask=bias)
        out: Tensor = self.linear_out(attended.transpose(1, 2).flatten(2))
        return out

    def position_scores(self, query: Tensor, positions: Tensor) -> Tensor:
        """(q + v) p^T for positions [H, N, D]: [B, H, T, N]."""
        return (query + self.pos_bias_v.unsqueeze(1)) @ positions.transpose(1, 2)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """All positions at once, and their keys and values: ``table`` is for distances T-1 to 1-T, ``mask`` [T, T] is
        added to the scores."""
        query, key, value = self.project(x)
        scores = _by_distance(self.position_scores(query, self.positions(table)))
        if mask is not None:
            scores = scores + mask
        return self.attend(query, key, value, scores), key, value


def _by_distance(scores: Tensor) -> Tensor:
    """[..., T, 2T-1] with columns for distances T-1 to 1-T, as [..., T, T] with a column for each key."""
    length = scores.shape[-2]
    columns = torch.arange(length, device=scores.device)
    index = (length - 1) - (columns.unsqueeze(1) - columns.unsqueeze(0))
    return scores.gather(-1, index.expand(*scores.shape[:-1], length))


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.width, config.inner)
        self.w_2 = nn.Linear(config.inner, config.width)
        self._activation = functional.relu if config.activation == "relu" else functional.silu

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(self._activation(self.w_1(x)))
        return out


class Block(nn.Module):
    """Attention, then the feed-forward, each on the norm of what it is added to."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config.width, config.heads)
        self.feed_forward = FeedForward(config)
        self.norm_mha = nn.LayerNorm(config.width, eps=BLOCK_EPS)
        self.norm_ff = nn.LayerNorm(config.width, eps=BLOCK_EPS)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attended, key, value = self.self_attn(self.norm_mha(x), table, mask)
        x = x + attended
        return x + self.feed_forward(self.norm_ff(x)), key, value


class _Embed(nn.Module):
    """The input layer; ``out`` is its name in the files."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(config.input_size, config.width), nn.LayerNorm(config.width))
        self._legacy = config.legacy

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(x)
        x = functional.relu(x) if self._legacy else x
        return x * math.sqrt(x.shape[-1])


class Encoder(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _Embed(config)
        self.encoders = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.after_norm = nn.LayerNorm(config.width)

    @property
    def blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.encoders))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, input_size] as [B, T, width]."""
        return self.prefill(x)[0]

    def prefill(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """As ``forward``; also the keys and values [B, H, T, D] of each block."""
        length = x.shape[1]
        distances = torch.arange(length - 1, -length, -1, device=x.device)
        table = sines(distances, self.config.width).to(x.dtype)
        mask = None
        if self.config.causal:
            mask = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        x = self.embed(x)
        cache = []
        for block in self.blocks:
            x, key, value = block(x, table, mask)
            cache.append((key, value))
        return self.after_norm(x), cache
