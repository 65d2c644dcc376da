"""The network inside flow matching: a one-dimensional U-Net of convolutions and attention over mel frames.

Shapes: B, C channels, T frames. ``mask`` [B, 1, T] is 1 for frames and 0 for padding, None where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from quintet_tts.cosyvoice.settings import Section

GROUPS = 8


@dataclass(frozen=True)
class EstimatorConfig:
    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    heads: int
    head_size: int
    blocks: int
    """Transformer blocks in a stage."""
    middle: int
    """Stages between the ways down and up."""

    @property
    def time_size(self) -> int:
        return 4 * self.channels[0]


def read_config(section: Section) -> EstimatorConfig:
    section.require("act_fn", ["gelu"])
    return EstimatorConfig(
        in_channels=section.integer("in_channels"),
        out_channels=section.integer("out_channels"),
        channels=tuple(section.integers("channels")),
        heads=section.integer("num_heads"),
        head_size=section.integer("attention_head_dim"),
        blocks=section.integer("n_blocks"),
        middle=section.integer("num_mid_blocks"),
    )


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


class _Time(nn.Module):
    """Times [B] between 0 and 1 as vectors."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, times: Tensor) -> Tensor:
        half = self.linear_1.in_features // 2
        rates = torch.exp(torch.arange(half, device=times.device) * -(math.log(10000.0) / (half - 1)))
        angles = 1000 * times.float().unsqueeze(1) * rates
        table = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.linear_1.weight.dtype)
        out: Tensor = self.linear_2(functional.silu(self.linear_1(table)))
        return out


class _Convolution(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, 3, padding=1), nn.GroupNorm(GROUPS, out_channels), nn.Mish()
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return _masked(self.block(_masked(x, mask)), mask)


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_size, out_channels))
        self.block1 = _Convolution(in_channels, out_channels)
        self.block2 = _Convolution(out_channels, out_channels)
        self.res_conv = nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None, time: Tensor) -> Tensor:
        hidden = self.block1(x, mask) + self.mlp(time).unsqueeze(-1)
        hidden = self.block2(hidden, mask)
        out: Tensor = hidden + self.res_conv(_masked(x, mask))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self._heads = heads
        self.to_q = nn.Linear(width, heads * size, bias=False)
        self.to_k = nn.Linear(width, heads * size, bias=False)
        self.to_v = nn.Linear(width, heads * size, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * size, width))

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """``keys`` [B, 1, 1, T] says which frames may be looked at."""
        query, key, value = (
            linear(x).unflatten(-1, (self._heads, -1)).transpose(1, 2) for linear in (self.to_q, self.to_k, self.to_v)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out


class _Gelu(nn.Module):
    """A linear layer and an exact GELU; ``proj`` is its name in the files."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The middle one is dropout in training; it keeps the names of the files.
        self.net = nn.Sequential(_Gelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class _Transformer(nn.Module):
    def __init__(self, width: int, config: EstimatorConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = _Attention(width, config.heads, config.head_size)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), keys)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class _Wrapped(nn.Module):
    """A convolution that changes the length; ``conv`` is its name in the files."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _Stage(nn.ModuleList):
    """A residual block, transformer blocks, and (but in the middle) a convolution to the next length."""

    def __init__(self, before: int, width: int, config: EstimatorConfig, after: nn.Module | None = None) -> None:
        blocks = nn.ModuleList(_Transformer(width, config) for _ in range(config.blocks))
        super().__init__([_Residual(before, width, config.time_size), blocks, *([] if after is None else [after])])

    def forward(self, x: Tensor, mask: Tensor | None, time: Tensor) -> Tensor:
        """[B, before, T] as [B, width, T]."""
        x = self[0](x, mask, time).transpose(1, 2)
        keys = None if mask is None else mask.bool().unsqueeze(1)
        for block in cast(nn.ModuleList, self[1]):
            x = block(x, keys)
        return x.transpose(1, 2)

    def resample(self, x: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self[2](_masked(x, mask))
        return out


class Estimator(nn.Module):
    """How the mel frames flow at one time."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        channels, last = config.channels, len(config.channels) - 1
        self.time_mlp = _Time(config.in_channels, config.time_size)
        self.down_blocks = nn.ModuleList()
        for index, width in enumerate(channels):
            before = channels[index - 1] if index else config.in_channels
            down = _Wrapped(nn.Conv1d(width, width, 3, stride=2, padding=1)) if index < last else _even(width)
            self.down_blocks.append(_Stage(before, width, config, down))
        self.mid_blocks = nn.ModuleList(_Stage(channels[-1], channels[-1], config) for _ in range(config.middle))
        self.up_blocks = nn.ModuleList()
        for index, before in enumerate(reversed(channels)):
            width = channels[max(0, last - 1 - index)]
            up = _Wrapped(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)) if index < last else _even(width)
            self.up_blocks.append(_Stage(2 * before, width, config, up))
        self.final_block = _Convolution(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], config.out_channels, 1)

    def forward(
        self, x: Tensor, mu: Tensor, times: Tensor, speakers: Tensor, condition: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The change of ``x`` [B, C, T] at ``times`` [B]; ``mu`` and ``condition`` [B, C, T], ``speakers`` [B, C]."""
        time = self.time_mlp(times)
        x = torch.cat([x, mu, speakers.unsqueeze(-1).expand(-1, -1, x.shape[-1]), condition], dim=1)
        masks: list[Tensor | None] = []
        skips: list[Tensor] = []
        here = mask
        for stage in cast(Iterable[_Stage], self.down_blocks):
            x = stage(x, here, time)
            masks.append(here)
            skips.append(x)
            x = stage.resample(x, here)
            here = None if here is None else here[:, :, ::2]
        for stage in cast(Iterable[_Stage], self.mid_blocks):
            x = stage(x, masks[-1], time)
        for stage in cast(Iterable[_Stage], self.up_blocks):
            here, skip = masks.pop(), skips.pop()
            x = stage(torch.cat([x[:, :, : skip.shape[-1]], skip], dim=1), here, time)
            x = stage.resample(x, here)
        x = self.final_proj(_masked(self.final_block(x, mask), mask))
        return _masked(x, mask)


def _even(width: int) -> nn.Module:
    """A convolution that keeps the length."""
    return nn.Conv1d(width, width, 3, padding=1)
