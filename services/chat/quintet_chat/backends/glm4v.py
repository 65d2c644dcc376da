"""glm-4v-9b: GLM-4 that sees. Its vision tower, and the model of both under transformers' Glm.

Facts: the released config.json and names of tensors; EVA-CLIP (arXiv 2303.15389) and CogVLM (arXiv 2311.03079) describe
the parts. A picture of 1120 pixels is 6400 patches and one more place, through blocks whose norms are behind attention
and MLP; four neighbours become one of 1600, and a learned vector goes before and behind these. In the text the 1602
have the three positions of the three tokens that a picture is written as.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu
from transformers import GlmConfig, GlmForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

_MERGED = 2
"""Patches of a side that become one place."""


class Eyes(NamedTuple):
    """What the ``vision_config`` of a config.json says, under its names; sizes of pictures are in pixels."""

    image_size: int
    patch_size: int
    num_positions: int
    in_channels: int
    hidden_size: int
    num_hidden_layers: int
    num_heads: int
    intermediate_size: int
    layer_norm_eps: float
    scaling_factor: float

    @classmethod
    def of(cls, published: Any) -> Eyes:
        """Raises ValueError for what is missing or cannot be."""
        for name in cls._fields:
            value = published.get(name) if isinstance(published, dict) else None
            if not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"vision_config: {name}: {value!r} in its config.json is no size")
        if (act := published.get("hidden_act", "gelu")) != "gelu":
            raise ValueError(f"vision_config: hidden_act: {act!r} in its config.json is not supported")
        eyes = cls(**{name: published[name] for name in cls._fields})
        side, rest = divmod(eyes.image_size, eyes.patch_size)
        if rest or side % _MERGED or eyes.num_positions != side * side + 1 or eyes.hidden_size % eyes.num_heads:
            raise ValueError("the sizes of vision_config in its config.json do not go together")
        return eyes

    @property
    def places(self) -> int:
        """What a picture becomes, but for the two vectors around it."""
        return (self.image_size // self.patch_size // _MERGED) ** 2


class _Patches(nn.Module):
    """Pixels [pictures, channels, height, width] to patches behind one more place, [pictures, 1 + patches, width]."""

    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(eyes.in_channels, eyes.hidden_size, eyes.patch_size, eyes.patch_size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, eyes.hidden_size))
        self.position_embedding = nn.Embedding(eyes.num_positions, eyes.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        first = self.cls_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self._heads = eyes.num_heads
        self.query_key_value = nn.Linear(eyes.hidden_size, 3 * eyes.hidden_size)
        self.dense = nn.Linear(eyes.hidden_size, eyes.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        heads = self.query_key_value(hidden).unflatten(-1, (3, self._heads, -1)).transpose(1, 3)
        seen = scaled_dot_product_attention(*heads.unbind(2))
        out: torch.Tensor = self.dense(seen.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(eyes.hidden_size, eyes.intermediate_size)
        self.fc2 = nn.Linear(eyes.intermediate_size, eyes.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(gelu(self.fc1(hidden)))
        return out


class _Block(nn.Module):
    """The norms' released names say something else than where they are: behind attention and behind the MLP."""

    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self.attention = _Attention(eyes)
        self.input_layernorm = nn.LayerNorm(eyes.hidden_size, eyes.layer_norm_eps)
        self.mlp = _Mlp(eyes)
        self.post_attention_layernorm = nn.LayerNorm(eyes.hidden_size, eyes.layer_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.input_layernorm(self.attention(hidden))
        out: torch.Tensor = hidden + self.post_attention_layernorm(self.mlp(hidden))
        return out


class _Blocks(nn.Module):
    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(eyes) for _ in range(eyes.num_hidden_layers))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            hidden = block(hidden)
        return hidden


class _Adapter(nn.Module):
    """What was seen, in the width of the text: a projection, then a gated network as wide as the text's."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(width, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.dense_h_to_4h = nn.Linear(width, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = gelu(self.norm1(self.linear_proj(hidden)))
        out: torch.Tensor = self.dense_4h_to_h(silu(self.gate_proj(hidden)) * self.dense_h_to_4h(hidden))
        return out


class VisionTower(nn.Module):
    """Pixels [pictures, channels, size, size] to what stands in the text, [pictures, places + 2, width of the text].

    Its parts have the names that they have in the released files.
    """

    def __init__(self, eyes: Eyes, width: int, inner: int) -> None:
        super().__init__()
        self.patch_embedding = _Patches(eyes)
        self.transformer = _Blocks(eyes)
        self.conv = nn.Conv2d(eyes.hidden_size, width, _MERGED, _MERGED)
        self.linear_proj = _Adapter(width, inner)
        self.boi = nn.Parameter(torch.zeros(1, 1, width))
        self.eoi = nn.Parameter(torch.zeros(1, 1, width))
        self._side, self._scale = eyes.image_size // eyes.patch_size, eyes.scaling_factor

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.transformer(self.patch_embedding(pixels))
        grid = hidden[:, 1:].transpose(1, 2).unflatten(2, (self._side, self._side))
        seen = self.linear_proj(self.conv(grid).flatten(2).transpose(1, 2))
        ends = (end.to(seen.device).expand(len(seen), 1, -1) for end in (self.boi, self.eoi))
        return torch.cat([next(ends), seen, next(ends)], dim=1) / self._scale


def numbers(ids: torch.Tensor, begin: int, places: int) -> torch.Tensor:
    """The positions of ``ids`` [tokens] with one picture, or none, whose first token is ``begin``: [tokens].

    All of its ``places`` have one number, the one behind that of ``begin``; the rest counts on from there.
    """
    plain = torch.arange(len(ids), device=ids.device)
    found = torch.nonzero(ids == begin)[:1, 0]
    return plain - (plain - found - 1).clamp(0, places - 1) if len(found) else plain


class SeeingGlm(GlmForCausalLM):  # type: ignore[misc]
    """GLM-4 with a tower. Its configuration has ``vision_config``, and ``image_token_id`` for the token that begins a
    picture.

    By itself it takes one row of ``input_ids`` with a picture's tokens, place by place, and its ``pixel_values``
    [1, channels, size, size].
    """

    _no_split_modules = (*GlmForCausalLM._no_split_modules, _Patches.__name__, _Block.__name__, _Adapter.__name__)

    def __init__(self, config: GlmConfig) -> None:
        super().__init__(config)
        eyes = Eyes.of(config.vision_config)
        self.vision = VisionTower(eyes, config.hidden_size, config.intermediate_size)
        self.places = eyes.places

    def get_image_features(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """``pooler_output`` [pictures, places + 2, hidden size] goes where the picture's tokens are."""
        return BaseModelOutputWithPooling(pooler_output=self.vision(pixel_values.to(self.dtype)))

    def numbers(self, ids: torch.Tensor) -> torch.Tensor:
        """The positions of the tokens ``ids`` of a prompt; see ``numbers``."""
        return numbers(ids, self.config.image_token_id, self.places)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        if pixel_values is not None:
            assert input_ids is not None
            inputs_embeds = self.get_input_embeddings()(input_ids)
            seen = self.get_image_features(pixel_values).pooler_output
            first = int(torch.nonzero(input_ids[0] == self.config.image_token_id)[0])
            inputs_embeds[0, first : first + seen.shape[1]] = seen[0].to(inputs_embeds)
            position_ids = self.numbers(input_ids[0])[None]
            # Without a mask transformers would take repeated positions for the beginnings of other texts.
            attention_mask, input_ids = torch.ones_like(input_ids), None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            logits_to_keep=logits_to_keep,
            **more,
        )
