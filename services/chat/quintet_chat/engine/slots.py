"""The KV cache: one slot (row) per sequence, under an unmodified transformers model.

Each layer holds keys and values as [rows, heads, capacity, head size]. A slot's tokens lie at 0..n-1 of its row; what
lies behind is masked. Before each forward pass the runner sets a plan, which says where the pass writes and what it
reads. Rows and capacity grow by reallocation, within a limit in cells (rows times capacity).
"""

from __future__ import annotations

import math
import mmap
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

ROUND = 64
"""Capacity is a multiple of this many tokens."""


class Plan(Protocol):
    """Where one forward pass writes its keys and values, and which ones it attends to."""

    start: int
    """Tokens before the first query, as transformers' mask code counts them."""
    length: int
    """Tokens that queries can attend to."""

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write ``new`` [batch, heads, queries, size] into ``store``; return what attention reads."""


class Fresh:
    """Whole prompts, right-padded to one length, into the slots ``row``, ``row + 1``, …"""

    def __init__(self, row: int, length: int) -> None:
        self.row, self.start, self.length = row, 0, length

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        store[self.row : self.row + new.shape[0], :, : self.length] = new
        return new


class Extend:
    """More tokens of one prompt behind the ``start`` that slot ``row`` has."""

    def __init__(self, row: int, start: int, queries: int) -> None:
        self.row, self.start, self.length = row, start, start + queries

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        store[self.row, :, self.start : self.length] = new[0]
        return store[self.row : self.row + 1, :, : self.length]


class Decode:
    """One token each for the slots 0..n-1, at ``positions`` [n]."""

    def __init__(self, positions: torch.Tensor, length: int) -> None:
        self.start, self.length = length - 1, length
        self._indices = {positions.device: (torch.arange(len(positions), device=positions.device), positions)}
        self._first = positions.device

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        if store.device not in self._indices:
            rows, positions = self._indices[self._first]
            self._indices[store.device] = (rows.to(store.device), positions.to(store.device))
        rows, positions = self._indices[store.device]
        store[rows, :, positions] = new[:, :, 0]
        return store[: len(rows), :, : self.length]


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values; allocated at the first pass, when their shape is known."""

    is_sliding = False

    def __init__(self, slots: SlotCache) -> None:
        super().__init__()
        self._slots = slots
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = self._new(key_states)
        self.values = self._new(value_states)

    def _new(self, like: torch.Tensor) -> torch.Tensor:
        shape = (self._slots.rows, like.shape[1], self._slots.capacity, like.shape[3])
        if like.device.type != "cpu":
            return torch.zeros(shape, dtype=like.dtype, device=like.device)
        # Fresh pages of the system are zero and take memory only once a token is written to them; torch would write
        # the zeros. Zeros they must be: what is masked is still multiplied, and NaN times nothing is NaN.
        pages = mmap.mmap(-1, math.prod(shape) * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(pages, dtype=like.dtype).view(shape)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.keys is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        plan = self._slots.plan
        return plan.put(self.keys, key_states), plan.put(self.values, value_states)

    def resize(self, rows: int, length: int) -> None:
        """Reallocate to the cache's size and keep the first ``length`` tokens of the first ``rows`` slots."""
        if self.keys is None or self.values is None:
            return
        for name in ("keys", "values"):
            old: torch.Tensor = getattr(self, name)
            new = self._new(old)
            new[:rows, :, :length] = old[:rows, :, :length]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self._slots.plan.length, 0

    def get_seq_length(self) -> int:
        return self._slots.plan.start

    def get_max_length(self) -> int:
        return -1


class SlotCache:
    """All layers' slots. ``cells`` limits rows times capacity; ``max_rows`` the rows."""

    def __init__(self, layers: int, max_rows: int, cells: int) -> None:
        self.max_rows = max_rows
        self.cells = cells
        self.rows = 0
        self.capacity = 0
        self.plan: Plan = Fresh(0, 0)
        self._layers = [SlotLayer(self) for _ in range(layers)]
        self.cache = Cache(layers=self._layers)

    def fits(self, rows: int, capacity: int) -> bool:
        """Whether that many slots of that many tokens are within the limits."""
        return rows <= self.max_rows and rows * _round_up(capacity) <= self.cells

    def reserve(self, rows: int, capacity: int, used_rows: int, used_length: int) -> bool:
        """Make room for ``rows`` slots of ``capacity`` tokens; False, and nothing changed, when that is over the limit.

        The first ``used_length`` tokens of the first ``used_rows`` slots are kept.
        """
        if rows <= self.rows and capacity <= self.capacity:
            return True
        if rows > self.max_rows:
            return False
        generous = (min(self.max_rows, 1 << (rows - 1).bit_length()), _round_up(capacity + max(capacity // 2, 128)))
        exact = (rows, _round_up(capacity))
        for new_rows, new_capacity in (
            (max(self.rows, generous[0]), max(self.capacity, generous[1])),
            (max(self.rows, exact[0]), max(self.capacity, exact[1])),
            exact,
        ):
            if new_rows * new_capacity <= self.cells:
                self._resize(new_rows, new_capacity, used_rows, used_length)
                return True
        return False

    def _resize(self, rows: int, capacity: int, used_rows: int, used_length: int) -> None:
        self.rows, self.capacity = rows, capacity
        for layer in self._layers:
            layer.resize(used_rows, used_length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot into another."""
        for layer in self._layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys[target, :, :length] = layer.keys[source, :, :length]
                layer.values[target, :, :length] = layer.values[source, :, :length]

    def release(self) -> None:
        """Give the memory of all slots back; the next ``reserve`` starts anew."""
        self.rows = self.capacity = 0
        for layer in self._layers:
            layer.keys = layer.values = None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one cell over all layers. Known after the first pass."""
        stores = [store for layer in self._layers for store in (layer.keys, layer.values) if store is not None]
        return sum(store.element_size() * store.shape[1] * store.shape[3] for store in stores)


def _round_up(capacity: int) -> int:
    return -(-capacity // ROUND) * ROUND
