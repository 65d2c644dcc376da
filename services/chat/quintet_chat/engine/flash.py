"""FlashAttention over blocks: queries read keys and values where they lie, by the table, and nothing is gathered.

An attention implementation of our own for transformers' models. It is told what pass runs by the runner, for the model
only says what its queries are; and it refuses whatever it was not told how to compute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from quintet_chat.engine.blocks import BlockPlan

NAME = "quintet_blocks"
"""In ``config._attn_implementation``. It has no masks: without an entry for them transformers makes none."""

PLAIN = "sdpa"
"""What it stands in for."""

Kernel = Callable[..., Any]
"""Of the signature of ``torch.nn.attention.varlen.varlen_attn``."""

_PASSED_ON = {"position_ids", "position_embeddings", "cache_position", "use_cache", "logits_to_keep", "return_dict"}
"""What models hand to any attention without a meaning for it."""


class Packed(NamedTuple):
    """What a pass's queries are and which keys they read, as the kernel wants it. int32, on the layer's device."""

    tokens: torch.Tensor | None
    """Which of the padded queries, counted through all rows, are real; None for all."""
    queries: torch.Tensor
    """Where each row's queries begin among the real ones, and the end, [rows + 1]."""
    keys: torch.Tensor
    """The same of keys: in a pass that reads blocks, of the blocks of the rows of the table."""
    most_queries: int
    most_keys: int
    """Of any row; at least 1."""
    lengths: torch.Tensor | None
    """Keys that count, [rows]. A row's last query sees them all."""
    table: torch.Tensor | None
    """[rows, blocks]; None where the keys are the pass's own."""

    def to(self, device: torch.device) -> Packed:
        tokens, lengths, table = (
            each if each is None else each.to(device) for each in (self.tokens, self.lengths, self.table)
        )
        queries, keys = self.queries.to(device), self.keys.to(device)
        return self._replace(tokens=tokens, queries=queries, keys=keys, lengths=lengths, table=table)


class Flash(NamedTuple):
    kernel: Kernel
    windows: list[int]
    """Per layer the keys that a query sees, itself with them; 0 for all before it."""

    def attend(
        self, packed: Packed, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """``query`` [batch, heads, tokens, size] over keys and values like it, or in pools: [batch, tokens, ...]."""
        batch, _, tokens, _ = query.shape
        window = self.windows[layer] - 1
        if packed.table is None:
            key, value = _pack(key, packed), _pack(value, packed)
        else:
            # One query sees all keys, which lets FlashAttention take the heads of one key together.
            window = -1 if window >= packed.most_keys else window
        one = packed.most_queries == 1 and window < 0
        found = self.kernel(
            _pack(query, packed),
            key,
            value,
            packed.queries,
            packed.keys,
            packed.most_queries,
            packed.most_keys,
            scale=scale,
            window_size=(-1, -1) if one else (window, 0),
            enable_gqa=query.shape[1] != key.shape[-2],
            seqused_k=packed.lengths,
            block_table=packed.table,
            # More than one is wrong for several rows (pytorch#194167), and lets a row's bits depend on the others.
            num_splits=1,
        )
        if packed.tokens is not None:
            found = found.new_zeros((batch * tokens, *found.shape[1:])).index_copy_(0, packed.tokens, found)
        whole: torch.Tensor = found.view(batch, tokens, *found.shape[1:])
        return whole


def _pack(padded: torch.Tensor, packed: Packed) -> torch.Tensor:
    """The real tokens of ``padded`` [batch, heads, tokens, size] as [tokens, heads, size]."""
    flat = padded.transpose(1, 2).flatten(0, 1)
    return flat if packed.tokens is None else flat[packed.tokens]


class _Running(threading.local):
    plan: BlockPlan | None = None
    """Of the pass that this thread runs."""


running = _Running()


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for each layer. Raises ValueError for anything beyond plain causal attention."""
    plan = running.plan
    if plan is None or plan.flash is None:
        raise ValueError("attention over blocks outside of a pass over blocks")
    window = more.pop("sliding_window", None) or 0
    if window and window != plan.flash.windows[module.layer_idx]:
        raise ValueError(f"a window of {window} in layer {module.layer_idx}")
    causal = more.pop("is_causal", None)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    unknown = sorted(name for name, given in more.items() if name not in _PASSED_ON and _says_something(given))
    if attention_mask is not None or dropout or not causal or unknown:
        raise ValueError(f"attention over blocks with {', '.join(unknown) or 'a mask, dropout, or in both directions'}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    packed = plan.packed(query.device)
    return plan.flash.attend(packed, module.layer_idx, query, key, value, scale), None


@contextmanager
def plainly(config: Any) -> Iterator[None]:
    """While it lasts, a model with this configuration computes attention as transformers does."""
    implementation = config._attn_implementation
    if implementation == NAME:
        config._attn_implementation = PLAIN
    try:
        yield
    finally:
        config._attn_implementation = implementation


def _says_something(given: Any) -> bool:
    return given is not None and given is not False and not (isinstance(given, int | float) and not given)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
