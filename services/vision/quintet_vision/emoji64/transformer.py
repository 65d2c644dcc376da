"""The network of emoji-64: a small diffusion transformer over pixels, conditioned on a sentence encoder's states.

It predicts the clean picture itself from a noisy one (x-prediction; Li and He, "Back to Basics: Let Denoising
Generative Models Denoise", 2025), with adaptive layer norm as in DiT (Peebles and Xie, 2023). Text states join the
patches as tokens; their mean joins the time in the modulation.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

_TIME_FEATURES = 128


class Block(nn.Module):
    """Attention and a feed-forward over all tokens, both scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_feed_forward = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward_in = nn.Linear(width, 4 * width)
        self.feed_forward_out = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` is (batch, tokens, width), ``condition`` (batch, width)."""
        parts = self.modulation(condition)[:, None].chunk(6, -1)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm_attention(x) * (1 + scale1) + shift1)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + gate1 * self.attention_out(mixed)
        hidden = functional.gelu(self.feed_forward_in(self.norm_feed_forward(x) * (1 + scale2) + shift2))
        output: Tensor = x + gate2 * self.feed_forward_out(hidden)
        return output


class Emoji64Transformer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """Pixels in, pixels out: (batch, 3, sample_size, sample_size) in -1 to 1."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 64,
        patch_size: int = 8,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        text_width: int = 384,
        text_tokens: int = 12,
    ) -> None:
        super().__init__()
        values, patches = 3 * patch_size**2, (sample_size // patch_size) ** 2
        self.patch_in = nn.Sequential(nn.Linear(values, 128), nn.Linear(128, width))
        self.patch_position = nn.Parameter(torch.randn(1, patches, width) * 0.02)
        self.text_in = nn.Linear(text_width, width)
        self.text_position = nn.Parameter(torch.randn(1, text_tokens, width) * 0.02)
        self.text_pool = nn.Linear(text_width, width)
        self.time_in = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.patch_out = nn.Linear(width, values)
        # A small residual convolution over the assembled picture and the noisy input closes the seams between patches.
        self.seam_in = nn.Conv2d(6, 24, 3, padding=1)
        self.seam_out = nn.Conv2d(24, 3, 3, padding=1)
        for last in (self.patch_out.weight, self.seam_out.weight, self.seam_out.bias):
            assert last is not None
            nn.init.zeros_(last)

    def forward(self, sample: Tensor, time: Tensor, text_states: Tensor) -> Tensor:
        """The clean picture that ``sample`` seems to come from.

        ``time`` is (batch,) from 0, pure noise, to 1, the picture; ``text_states`` is (batch, text_tokens, text_width),
        zero where there is no token. The answer has the type of ``sample``; inside, that of the weights is used.
        """
        size = self.config.patch_size
        noisy, text_states = sample.to(self.dtype), text_states.to(self.dtype)
        times = _time_features(time).to(self.dtype)
        condition = functional.silu(self.time_in(times) + self.text_pool(text_states.mean(1)))
        patches = functional.pixel_unshuffle(noisy, size).flatten(2).transpose(1, 2)
        patches = self.patch_in(patches) + self.patch_position
        tokens = torch.cat([patches, self.text_in(text_states) + self.text_position], 1)
        for block in self.blocks:
            tokens = block(tokens, condition)
        values = self.patch_out(self.norm_out(tokens[:, : patches.shape[1]])).to(noisy.dtype)
        side = self.config.sample_size // size
        picture = functional.pixel_shuffle(values.transpose(1, 2).unflatten(2, (side, side)), size)
        seams = self.seam_out(functional.silu(self.seam_in(torch.cat([picture, noisy], 1))))
        output: Tensor = (picture + seams).to(sample.dtype)
        return output


def _time_features(time: Tensor) -> Tensor:
    """Sines and cosines of ``time``, (batch, 128)."""
    half = _TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=time.device) / half)
    angles = frequencies * time[:, None] * 1000
    return torch.cat([angles.sin(), angles.cos()], -1)
