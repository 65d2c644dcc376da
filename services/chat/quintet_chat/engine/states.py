"""What layers with a recurrence remember of each sequence: a state per slot, beside the keys and values of the others.

A state stands for all tokens so far. Unlike keys and values it is there behind the last token alone: a sequence can go
on from it and be copied with it, but another can begin with a part of its text only where a copy was kept in time
(snapshots.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from quintet_chat.engine.pages import Pages

if TYPE_CHECKING:
    from quintet_chat.engine.slots import KeyValueLayer, SlotCache

Key = tuple[str, int]
"""``conv`` or ``recurrent``, and the number of the state: some layers have several of a kind."""


class StateLayer(LinearAttentionCacheLayerMixin):  # type: ignore[misc]
    """One layer's states; allocated at the first pass, when their shapes are known."""

    is_initialized = True
    record_past = False

    def __init__(self, slots: SlotCache) -> None:
        self._slots = slots
        self._states: dict[Key, torch.Tensor] = {}
        """For all slots, [rows, ...] each."""
        self._pages: dict[Key, Pages] = {}
        self.stores: list[torch.Tensor] = []
        """Keys and values: it has none."""

    @property
    def has_previous_state(self) -> dict[int, bool]:
        return dict.fromkeys({index for _, index in self._states} | {0}, not self._slots.plan.begins)

    @property
    def conv_states(self) -> dict[int, torch.Tensor]:
        return self._of_plan("conv")

    @property
    def recurrent_states(self) -> dict[int, torch.Tensor]:
        return self._of_plan("recurrent")

    def _of_plan(self, kind: str) -> dict[int, torch.Tensor]:
        rows = self._slots.plan.rows
        return {index: state[rows] for (each, index), state in self._states.items() if each == kind}

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Nothing: ``update`` allocates."""

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> torch.Tensor:
        """Keep the last of ``conv_states`` [batch, channels, tokens]; return them behind those that were kept before.

        At the beginning of a sequence that are zeros, and only as many as a state lacks.
        """
        known = self._states.get(("conv", state_idx))
        size = known.shape[-1] if known is not None else conv_kernel_size or conv_states.shape[-1]
        kept = self._state(("conv", state_idx), conv_states.new_empty(*conv_states.shape[:-1], size))
        if self._slots.plan.begins:
            whole = torch.nn.functional.pad(conv_states, (max(size - conv_states.shape[-1], 0), 0))
        else:
            whole = torch.cat([kept, conv_states], dim=-1)
        kept.copy_(whole[..., -size:])
        return whole

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any) -> torch.Tensor:
        """Keep ``recurrent_states`` [batch, ...] instead of those before."""
        return self._state(("recurrent", state_idx), recurrent_states).copy_(recurrent_states)

    def _state(self, key: Key, like: torch.Tensor) -> torch.Tensor:
        """The rows of the plan, of a state that is ``like`` this one, [batch, ...]."""
        if key not in self._states:
            self._states[key] = self._new(key, like)
        return self._states[key][self._slots.plan.rows]

    def _new(self, key: Key, like: torch.Tensor) -> torch.Tensor:
        shape = (self._slots.rows, *like.shape[1:])
        if not self._slots.paged:
            return torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._pages[key] = Pages(shape, like.dtype)
        return self._pages[key].tensor

    def read(self, _row: int, _first: int, _last: int) -> list[torch.Tensor]:
        """Keys and values of some tokens: none."""
        return []

    def write(self, _row: int, _first: int, _parts: list[torch.Tensor]) -> None:
        """Nothing, likewise."""

    def take(self, row: int) -> dict[Key, torch.Tensor]:
        """The states of one slot; views."""
        return {key: state[row] for key, state in self._states.items()}

    def put_back(self, row: int, states: dict[Key, torch.Tensor]) -> None:
        """Let a slot have the states that ``take`` gave."""
        for key, state in states.items():
            if key not in self._states:  # all slots have been released in between
                self._states[key] = self._new(key, state[None])
            self._states[key][row] = state

    def resize(self, rows: int, _length: int) -> None:
        """Reallocate to the cache's rows and keep the first ``rows``."""
        for key, old in list(self._states.items()):
            self._states[key] = self._new(key, old)
            self._states[key][:rows] = old[:rows]

    def copy(self, source: int, target: int, _length: int) -> None:
        """Copy the states of one slot into another."""
        for state in self._states.values():
            state[target] = state[source]

    def discard(self, row: int, start: int) -> None:
        """Give back the memory of a slot, unless tokens before ``start`` are kept."""
        if start == 0:
            for pages in self._pages.values():
                pages.discard(pages.tensor[row])

    def release(self) -> None:
        self._states = {}
        self._pages = {}

    @property
    def bytes_per_row(self) -> int:
        """Of one slot. Known after the first pass."""
        return sum(state[0].nbytes for state in self._states.values())


class HybridLayer(StateLayer, CacheLayerMixin):  # type: ignore[misc]
    """The states of a layer that keeps ``keys_values`` besides, as transformers sees the two."""

    is_sliding = False

    def __init__(self, slots: SlotCache, keys_values: KeyValueLayer) -> None:
        super().__init__(slots)
        self._keys_values = keys_values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``KeyValueLayer.update``."""
        return self._keys_values.update(keys, values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._keys_values.get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        return self._keys_values.get_seq_length()

    def get_max_length(self) -> int:
        return self._keys_values.get_max_length()
