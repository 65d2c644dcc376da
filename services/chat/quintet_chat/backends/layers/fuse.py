"""Decoder layers of the most usual build, computed with fewer operations: bfloat16 on a CPU.

With one sequence a small model's decode step is, beside reading weights, hundreds of calls of microseconds each. So
queries, keys and values become one matrix product and are rotated together, gate and up become one, and a norm takes
six operations in place of eight. Llama, Mistral, Qwen2 and many more are of this build; a layer is only replaced after
it was shown to compute the same, and everything else stays as transformers made it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from quintet_common.packing import Product, can_be_packed
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quintet_chat.engine.slots import QUERIES

log = logging.getLogger("quintet.chat")

LIKENESS = 0.02
"""How far the two may be apart, relative to the length of their difference from the input. Rounding comes to 0.004."""

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, as a model hands them to its layers."""

_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)


class Norm:
    """A root mean square norm, in the order and precision of transformers' models."""

    def __init__(self, norm: Any) -> None:
        self._weight = norm.weight.detach().clone()
        self._epsilon = torch.tensor(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)
        self._share = 1 / len(self._weight)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.addcmul(self._epsilon, length, length, value=self._share).rsqrt_()
        normed: torch.Tensor = self._weight * wide.mul_(scale).to(hidden.dtype)
        return normed


class Turn:
    """Cosines and sines of a pass's positions, which all of its layers share: made ready by the first of them."""

    def __init__(self) -> None:
        self._ready: tuple[Angles | None, torch.Tensor, torch.Tensor] = (None, torch.empty(0), torch.empty(0))

    def __call__(self, heads: torch.Tensor, angles: Angles) -> torch.Tensor:
        """``heads`` [batch, heads, tokens, size], turned by ``angles``, [batch, tokens, size] each."""
        half = heads.shape[-1] // 2
        given, cosines, sines = self._ready
        if given is not angles:
            cosines, sines = (each[:, None] for each in angles)
            sines = torch.cat((-sines[..., :half], sines[..., half:]), -1)
            self._ready = angles, cosines, sines
        return (heads * cosines).add_(heads.roll(half, -1).mul_(sines))


class FusedLayer(nn.Module):
    """What ``layer`` computes. Raises AttributeError for one of another build."""

    def __init__(self, layer: Any, turn: Turn) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx: int = attention.layer_idx
        self.num_key_value_groups: int = attention.num_key_value_groups
        self.size: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._keys = attention.k_proj.out_features // self.size
        self._queries = attention.q_proj.out_features // self.size
        self._spare = max(QUERIES - self.num_key_value_groups, 0)
        self._turn = turn
        # None is a module or a parameter: their calls and their attributes cost more than some operations.
        self._norms = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.products = [
            Product([attention.q_proj, attention.k_proj, attention.v_proj]),
            Product([attention.o_proj]),
            Product([mlp.gate_proj, mlp.up_proj]),
            Product([mlp.down_proj]),
        ]
        self._qkv, self._out, self._gate_up, self._down = self.products
        self._act = mlp.act_fn.forward

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: Angles | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        assert position_embeddings is not None
        normed = self._norms[0](hidden_states)
        middle = self.attend(normed, attention_mask, position_embeddings, past_key_values).add_(hidden_states)
        return self.feed(self._norms[1](middle)).add_(middle)

    def attend(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, angles: Angles, cache: Any = None
    ) -> torch.Tensor:
        """Attention of ``hidden`` [batch, tokens, width] to itself and to what is in the cache."""
        batch, tokens, _ = hidden.shape
        heads = self._qkv(hidden).view(batch, tokens, -1, self.size).transpose(1, 2)
        turned = self._turn(heads[:, : -self._keys], angles)
        queries, keys, values = turned[:, : self._queries], turned[:, self._queries :], heads[:, -self._keys :]
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer_idx)
        if tokens == 1:
            # The queries of one key are as many tokens to the operator: nothing is repeated.
            grouped = pad(queries.reshape(batch, self._keys, -1, self.size), (0, 0, 0, self._spare))
            seen = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=self._scaling)
            seen = seen[:, :, : self.num_key_value_groups]
        else:
            attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
            seen, _ = attention(self, queries, keys, values, mask, scaling=self._scaling)
        return self._out(seen.reshape(batch, tokens, -1))

    def feed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The gated feed-forward network."""
        gate, up = self._gate_up(hidden).chunk(2, -1)
        return self._down(self._act(gate).mul_(up))


@torch.inference_mode()
def fuse(model: Any) -> int:
    """Replace the layers of ``model`` of which that can be done, in place; the number of those that were."""
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        if isinstance(parent, nn.ModuleList)
        for name, child in parent.named_children()
        if _is_usual(child)
    ]
    given = _given(model, [layer for *_, layer in found])
    turn, fused = Turn(), 0
    for parent, name, layer in found:
        made = _fused(layer, turn, given.get(layer, {}))
        if made is not None:
            setattr(parent, name, made)
            fused += 1
    return fused


def _is_usual(layer: Any) -> bool:
    """Whether it has the parts of a usual layer, and no others, on a CPU in bfloat16."""
    if _parts(layer) != _LAYER or _parts(layer.self_attn) != _ATTENTION or _parts(layer.mlp) != _MLP:
        return False
    owners = [layer, layer.self_attn, layer.mlp]
    linears = [getattr(layer.self_attn, name) for name in _ATTENTION]
    linears += [getattr(layer.mlp, name) for name in _MLP if name != "act_fn"]
    return all(can_be_packed(linear) and linear.weight.dtype == torch.bfloat16 for linear in linears) and not any(
        "forward" in vars(owner) or [*owner.parameters(recurse=False), *owner.buffers(recurse=False)]
        for owner in owners
    )


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _given(model: Any, layers: list[nn.Module]) -> dict[nn.Module, dict[str, Any]]:
    """What ``model`` hands to each of ``layers`` beside the hidden states."""
    given: dict[nn.Module, dict[str, Any]] = {}

    def note(layer: nn.Module, _: Any, keywords: dict[str, Any]) -> None:
        given[layer] = {name: value for name, value in keywords.items() if name != "hidden_states"}

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        if layers:
            model(input_ids=torch.tensor([list(range(1, 10))]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return given


def _fused(layer: Any, turn: Turn, given: dict[str, Any]) -> FusedLayer | None:
    """The layer that replaces ``layer``, if it computes the same."""
    try:
        made = FusedLayer(layer, turn)
        angles, mask = given["position_embeddings"], given["attention_mask"]
        if len(angles) != 2 or any(each.ndim != 3 or each.shape[2] != made.size for each in angles):
            return None
        hidden = torch.randn(1, angles[0].shape[1], layer.mlp.down_proj.out_features).to(torch.bfloat16)
        theirs, _ = layer.self_attn(hidden_states=hidden, **given)
        same = (
            _alike(made.attend(hidden, mask, angles), theirs)
            and _alike(made.feed(hidden), layer.mlp(hidden))
            and _alike(made(hidden, **given) - hidden, layer(hidden, **given) - hidden)
        )
    except _FAILURES:
        log.debug("a layer is left as it is", exc_info=True)
        return None
    return made if same else None


def _alike(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).float().norm() <= LIKENESS * theirs.float().norm())
