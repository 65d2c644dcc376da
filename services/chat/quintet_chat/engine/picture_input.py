"""What a model is given where pictures stand among the tokens: embeddings, and what some models want besides."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch


class Shown(NamedTuple):
    """What one row of a batch is shown at some of its tokens."""

    row: int
    where: torch.Tensor
    """The tokens, ascending: [n]."""
    seen: torch.Tensor
    """See ``Picture.seen``: [1 + layers, n, hidden size]."""


class PictureInput:
    """Makes the input of ``model``, an image-text model of transformers whose embeddings are computed on ``device``."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._device = device
        self._embed = model.get_input_embeddings()
        config = model.config.get_text_config()
        # Some models have no embedding for the token of a picture; those that embed tokens anew for each layer take
        # their padding there.
        self._blank: int = getattr(config, "pad_token_id", None) or 0
        inner = getattr(model.base_model, "language_model", model.base_model)
        self._per_layer = inner.get_per_layer_inputs if getattr(config, "hidden_size_per_layer_input", 0) else None
        self._deep = "deepstack_visual_embeds" in inspect.signature(inner.forward).parameters
        if self._deep:
            # The outer forward pass makes these arguments from pixels alone, but hands others through.
            inner.register_forward_pre_hook(_with_deepstack, with_kwargs=True)
        hook: Any = getattr(model, "_hf_hook", None)
        if hasattr(hook, "skip_keys"):
            # Of a model on several devices these are where its own code would have them. accelerate would move them to
            # the first device, where what they meet need not be.
            hook.skip_keys = [*_listed(hook.skip_keys), "inputs_embeds", "per_layer_inputs"]

    def __call__(self, ids: torch.Tensor, shown: Iterable[Shown]) -> dict[str, torch.Tensor]:
        """Arguments for the model's forward pass over ``ids`` [rows, tokens], instead of the ids."""
        shown = list(shown)
        at_picture = torch.zeros_like(ids, dtype=torch.bool)
        for row, where, _ in shown:
            at_picture[row, where] = True
        ids = ids.masked_fill(at_picture, self._blank).to(self._device)
        embedded = self._embed(ids)
        for row, where, seen in shown:
            embedded[row, where.to(embedded.device)] = seen[0]
        given = {"inputs_embeds": embedded}
        if self._per_layer is not None:
            given["per_layer_inputs"] = self._per_layer(ids)
        if self._deep and shown:
            layers = torch.cat([seen[1:] for *_, seen in shown], dim=1)
            given |= {"picture_places": at_picture.to(ids.device), "picture_layers": layers}
        return given


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def _with_deepstack(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Add what is shown to the first layers of the text model (DeepStack, arXiv 2406.04334), when there is anything."""
    if "picture_places" in kwargs:
        kwargs["visual_pos_masks"] = kwargs.pop("picture_places")
        kwargs["deepstack_visual_embeds"] = list(kwargs.pop("picture_layers"))
    return args, kwargs
