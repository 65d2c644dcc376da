"""Which layers of a model are replaced: those whose replacement was shown to compute the same."""

from __future__ import annotations

import logging
from typing import Any

import torch
from quintet_common.packing import can_be_packed
from torch import nn

from quintet_chat.backends.layers.attention import Rotation, Turn
from quintet_chat.backends.layers.layer import FusedLayer, has_usual_feed, norms_of
from quintet_chat.backends.layers.likeness import Different, alike

log = logging.getLogger("quintet.chat")

_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, Different)
_TOKENS = 9
"""Of the trial."""

Found = tuple[nn.Module, str, nn.Module]
"""A list of layers, the number of one in it, and the layer."""


@torch.inference_mode()
def fuse(model: Any) -> int:
    """Replace the layers of ``model`` of which that can be done, in place; the number of those that were."""
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return 0
    found: list[Found] = [
        (parent, name, child)
        for parent in model.modules()
        if isinstance(parent, nn.ModuleList)
        for name, child in parent.named_children()
        if _is_candidate(child)
    ]
    replaced: list[Found] = []
    try:
        if found:
            _replace(model, found, replaced)
            _run(model)
    except _FAILURES:  # it asks its layers for something that ours do not have
        log.info("its layers are left as they are", exc_info=True)
        for parent, name, layer in replaced:
            setattr(parent, name, layer)
        return 0
    return len(replaced)


def _replace(model: Any, found: list[Found], replaced: list[Found]) -> None:
    given = _given(model, [layer for *_, layer in found])
    turn, likely = Turn(), 0
    for parent, name, layer in found:
        made, likely = _fused(layer, turn, given.get(layer, {}), likely)
        if made is not None:
            setattr(parent, name, made)
            replaced.append((parent, name, layer))


def _is_candidate(layer: Any) -> bool:
    """Whether it has the parts of a layer that we know, and no others, on a CPU in bfloat16."""
    if norms_of(layer) is None:
        return False
    parts = [layer.self_attn, *([layer.mlp] if has_usual_feed(layer) else [])]
    linears = [child for part in parts for name, child in part.named_children() if name.endswith("_proj")]
    return all(can_be_packed(linear) and linear.weight.dtype == torch.bfloat16 for linear in linears) and not any(
        "forward" in vars(owner) or [*owner.parameters(recurse=False), *owner.buffers(recurse=False)]
        for owner in [layer, *parts]
    )


def _run(model: Any) -> None:
    """The last tokens of the longest text that ``model`` takes: what depends on their places must show."""
    config = model.config.get_text_config()
    end = max(int(getattr(config, "max_position_embeddings", None) or 0), _TOKENS)
    places = torch.arange(end - _TOKENS, end)[None]
    model(input_ids=torch.arange(1, _TOKENS + 1)[None], position_ids=places, use_cache=False)


def _given(model: Any, layers: list[nn.Module]) -> dict[nn.Module, dict[str, Any]]:
    """What ``model`` hands to each of ``layers`` beside the hidden states."""
    given: dict[nn.Module, dict[str, Any]] = {}

    def note(layer: nn.Module, _: Any, keywords: dict[str, Any]) -> None:
        given[layer] = {name: value for name, value in keywords.items() if name != "hidden_states"}

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        _run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return given


def _fused(layer: Any, turn: Turn, given: dict[str, Any], likely: int) -> tuple[FusedLayer | None, int]:
    """The layer that replaces ``layer``, if one computes the same, and the number of its rotation.

    Which of the rotations it is no name tells; that of number ``likely`` is tried first.
    """
    try:
        dimensions = _turned(layer, given["position_embeddings"])
        rotations = [Rotation(dimensions), Rotation(dimensions, neighbours=True), Rotation(0)]
        for number in sorted(range(len(rotations)), key=lambda number: number != likely):
            made = FusedLayer(layer, rotations[number], turn)
            if _same(made, layer, given):
                return made, number
    except _FAILURES:
        log.debug("a layer is left as it is", exc_info=True)
    return None, likely


def _turned(layer: Any, angles: Any) -> int:
    """How many dimensions of a head ``angles`` are for. Raises Different where they are not one per token."""
    if len(angles) != 2 or any(each.ndim != 3 or each.shape[2] > layer.self_attn.head_dim for each in angles):
        raise Different("angles of another kind")
    return int(angles[0].shape[2])


def _same(made: FusedLayer, layer: Any, given: dict[str, Any]) -> bool:
    width = layer.self_attn.o_proj.out_features
    noise = torch.randn(1, _TOKENS, width, generator=torch.Generator().manual_seed(0))
    hidden = noise.to(torch.bfloat16)
    theirs, _ = layer.self_attn(hidden_states=hidden, **given)
    ours = made.attend(hidden, given["attention_mask"], given["position_embeddings"])
    return (
        alike(ours, theirs)
        and alike(made.feed(hidden), layer.mlp(hidden))
        and alike(made(hidden, **given) - hidden, layer(hidden, **given) - hidden)
    )
