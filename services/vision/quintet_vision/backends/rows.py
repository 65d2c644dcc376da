"""Pictures of a batch whose requests have gone: they are computed no further, and the others go on as they were.

Nothing in the pipeline's loop changes its shape: latents, schedulers' states, generators and masks keep a row for each
picture. What costs, the network and the autoencoder, is given the wanted rows alone, and the places of the others are
filled with zeros in what comes back. So it is sound wherever the network computes each row by itself and it is known
which of its inputs have rows; families that are not in the table below go on with all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_PER_PICTURE = {
    "Emoji64Transformer": {"sample", "time", "text_states"},
    "FluxTransformer2DModel": {
        "hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections",
    },
    "Flux2Transformer2DModel": {
        "hidden_states", "timestep", "guidance", "encoder_hidden_states", "img_ids", "txt_ids",
    },
    "QwenImageTransformer2DModel": {
        "hidden_states", "timestep", "guidance", "encoder_hidden_states", "encoder_hidden_states_mask", "img_shapes",
    },
    "SD3Transformer2DModel": {"hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"},
    "UNet2DConditionModel": {"sample", "timestep", "encoder_hidden_states", "timestep_cond", "added_cond_kwargs"},
    "ZImageTransformer2DModel": {"x", "t", "cap_feats"},
}  # fmt: skip
"""Networks, and those of their inputs that have a row for each picture, the first of them always. With guidance there
are several such rows, all pictures once and then all of them again."""

_SHARED = {"FluxTransformer2DModel": {"img_ids", "txt_ids"}}
"""Inputs that are tensors and the same for all pictures."""


class Rows:
    """The pictures of one batch, by their places in it, that are still wanted."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._wanted = list(range(count))
        self._places: list[int] = []
        """Rows that the network is computing now, of ``_total``; none when it computes all."""
        self._total = 0

    def drop(self, places: Collection[int]) -> None:
        self._wanted = [place for place in self._wanted if place not in places]

    @contextmanager
    def narrowing(self, pipe: Any) -> Iterator[None]:
        """While ``pipe`` draws the batch: give its network and autoencoder wanted rows only."""
        network: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        if self._count == 1 or type(network).__name__ not in _PER_PICTURE:
            yield
            return
        hooks = (
            network.register_forward_pre_hook(self._before, with_kwargs=True),
            network.register_forward_hook(self._after),
        )
        vae = getattr(pipe, "vae", None)
        if vae is not None:
            vae.decode = self._narrowed(vae.decode)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            if vae is not None:
                del vae.decode  # what it covered is the class's

    def _before(self, network: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        self._places = []
        if len(self._wanted) == self._count:
            return None
        kind = type(network)
        arguments = inspect.signature(kind.forward).bind(network, *given, **named).arguments
        _, (_, first), *_ = arguments.items()
        self._total = len(first)
        known = _PER_PICTURE[kind.__name__] | _SHARED.get(kind.__name__, set())
        inputs = dict(list(arguments.items())[1:])
        strange = [name for name, value in inputs.items() if name not in known and _has_tensors(value)]
        if strange or self._total % self._count:
            return None
        groups = range(0, self._total, self._count)
        self._places = [group + place for group in groups for place in self._wanted]
        for name in _PER_PICTURE[kind.__name__] & inputs.keys():
            inputs[name] = _some(inputs[name], self._places, self._total)
        return (), inputs

    def _after(self, _network: Any, _given: Any, output: Any) -> Any:
        return _filled(output, self._places, self._total) if self._places else None

    def _narrowed(self, decode: Any) -> Any:
        def decode_wanted(latents: Tensor, *given: Any, **named: Any) -> Any:
            if len(latents) != self._count or len(self._wanted) == self._count:
                return decode(latents, *given, **named)
            return _filled(decode(latents[self._wanted], *given, **named), self._wanted, self._count)

        return decode_wanted


def _some(value: Any, places: list[int], total: int) -> Any:
    """Of what has ``total`` rows, those at ``places``; a single value stays, being for all of them."""
    if isinstance(value, dict):
        return {name: _some(each, places, total) for name, each in value.items()}
    if isinstance(value, list) and len(value) == total:
        return [value[place] for place in places]
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == total:
        return value[places]
    return value


def _has_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_tensors, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_has_tensors, value)))


def _filled(output: Any, places: list[int], total: int) -> Any:
    """``output``, whose rows belong at ``places`` of ``total``, with zeros in between."""
    if isinstance(output, dict):  # one of diffusers' own kinds of it
        for name, value in output.items():
            output[name] = _filled(value, places, total)
        return output
    if isinstance(output, tuple):
        return tuple(_filled(each, places, total) for each in output)
    if isinstance(output, list):
        rows = [torch.zeros_like(output[0])] * total
        for place, row in zip(places, output, strict=True):
            rows[place] = row
        return rows
    whole = output.new_zeros(total, *output.shape[1:])
    whole[places] = output
    return whole
