"""The KV cache: one slot (row) per sequence, under an unmodified transformers model.

Each layer holds keys and values as [rows, heads, capacity, head size]. A slot's tokens lie at 0..n-1 of its row; what
lies behind is masked. Before each forward pass the runner sets a plan, which says where the pass writes and what it
reads: attention gets plain views, so that it needs no kernel of ours.

Memory is taken by need, in tokens that slots hold, within a limit in cells (tokens). On a CPU the slots are as long as
the context from the beginning and the system gives them memory page by page (pages.py). Elsewhere rows and capacity
grow by reallocation, and cells count rows times capacity.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NamedTuple, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from quintet_chat.engine.pages import Pages
from quintet_chat.engine.states import StateLayer

ROUND = 64
"""Capacity, and what a slot is counted to hold, are multiples of this many tokens."""


VECTOR, SPAN, HALVED, UNHALVED = 16, 512, 192, 384
"""Attention reads a multiple of so many keys, in spans of so many; a last span of a length between the other two, whose
middle oneDNN would begin a new sum at, is filled up. Then torch's CPU kernels add up a row in the same order whatever
length other rows bring, and an answer is the same bit for bit in any company."""

QUERIES = 4
"""Of fewer queries than this, or so few behind a multiple of 32, these kernels add up a row in another order, too."""


def whole(length: int, capacity: int | None = None) -> int:
    """How many keys are read where there are ``length``, at most ``capacity``."""
    vectors = -(-length // VECTOR) * VECTOR
    if HALVED < (rest := vectors % SPAN) < UNHALVED:
        vectors += UNHALVED - rest
    return vectors if capacity is None else min(vectors, capacity)


class Plan(Protocol):
    """Where one forward pass writes its keys and values, and which ones it attends to."""

    start: int
    """Tokens before the first query, as transformers' mask code counts them."""
    length: int
    """Tokens that queries can attend to."""
    rows: slice
    """The slots that the pass is for."""
    begins: bool
    """Whether nothing was computed of its sequences before."""

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write ``new`` [batch, heads, queries, size] into ``store``; return what attention reads."""


class Prefill:
    """Pieces of prompts, right-padded to one length: ``counts[i]`` tokens behind the ``starts[i]`` of slot ``row + i``.

    Attention reads the slots, of this ``capacity``; with None all begin at 0 and read what this pass has computed.
    """

    def __init__(self, row: int, starts: list[int], counts: list[int], capacity: int | None) -> None:
        self.rows = slice(row, row + len(starts))
        self.begins = not any(starts)
        self._spans = [(start, start + count) for start, count in zip(starts, counts, strict=True)]
        self.start = max(starts)
        self.length = max(counts) if capacity is None else whole(self.start + max(counts), capacity)
        self._fresh = capacity is None

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        for index, (start, end) in enumerate(self._spans):
            store[self.rows.start + index, :, start:end] = new[index, :, : end - start]
        return new if self._fresh else store[self.rows, :, : self.length]


class Decode:
    """One token each for the slots 0..n-1, at ``positions`` [n]."""

    begins = False

    def __init__(self, positions: torch.Tensor, length: int) -> None:
        self.start, self.length = length - 1, length
        self.rows = slice(0, len(positions))
        self._indices = {positions.device: (torch.arange(len(positions), device=positions.device), positions)}
        self._first = positions.device

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        if store.device not in self._indices:
            rows, positions = self._indices[self._first]
            self._indices[store.device] = (rows.to(store.device), positions.to(store.device))
        rows, positions = self._indices[store.device]
        store[rows, :, positions] = new[:, :, 0]
        return store[: len(rows), :, : self.length]


class _Kind(NamedTuple):
    """What keys or values of a layer are like."""

    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values; allocated at the first pass, when their shape is known."""

    is_sliding = False

    def __init__(self, slots: SlotCache) -> None:
        super().__init__()
        self._slots = slots
        self._kinds: list[_Kind] = []
        self._pages: list[Pages] = []
        self.stores: list[torch.Tensor] = []
        """Keys and values, once there are any."""
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._kinds = [_Kind(new.shape[1], new.shape[3], new.dtype, new.device) for new in (key_states, value_states)]
        self.resize(0, 0)

    def resize(self, rows: int, length: int) -> None:
        """Reallocate to the cache's size and keep the first ``length`` tokens of the first ``rows`` slots."""
        old, self.stores = self.stores, []
        for index, kind in enumerate(self._kinds):
            self.stores.append(self._new(kind))
            if rows:
                self.stores[index][:rows, :, :length] = old[index][:rows, :, :length]

    def _new(self, kind: _Kind) -> torch.Tensor:
        shape = (self._slots.rows, kind.heads, self._slots.capacity, kind.size)
        if not self._slots.paged:
            # Zeros: what is masked is still multiplied, and NaN times nothing is NaN.
            return torch.zeros(shape, dtype=kind.dtype, device=kind.device)
        self._pages.append(Pages(shape, kind.dtype))
        return self._pages[-1].tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.stores:
            self.lazy_initialization(key_states, value_states)
        plan, (keys, values) = self._slots.plan, self.stores
        return plan.put(keys, key_states), plan.put(values, value_states)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot into another."""
        for store in self.stores:
            store[target, :, :length] = store[source, :, :length]

    def read(self, row: int, first: int, last: int) -> list[torch.Tensor]:
        """Keys and values of the tokens ``first`` to ``last - 1`` of a slot, [tokens, heads, head size] each."""
        return [store[row, :, first:last].transpose(0, 1) for store in self.stores]

    def write(self, row: int, first: int, parts: list[torch.Tensor]) -> None:
        """Put what ``read`` gave into a slot, from token ``first`` on."""
        for store, part in zip(self.stores, parts, strict=True):
            store[row, :, first : first + len(part)] = part.transpose(0, 1)

    def discard(self, row: int, start: int) -> None:
        """Give back the memory of a slot from token ``start`` on."""
        for pages in self._pages:
            if start == 0:
                pages.discard(pages.tensor[row])
            else:
                for head in range(pages.tensor.shape[1]):
                    pages.discard(pages.tensor[row, head, start:])

    def release(self) -> None:
        self.stores = []
        self._pages = []

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self._slots.plan.length, 0

    def get_seq_length(self) -> int:
        return self._slots.plan.start

    def get_max_length(self) -> int:
        return -1


class SlotCache:
    """All layers' slots: at most ``max_rows`` of at most ``longest`` tokens, ``cells`` tokens in all.

    The layers with the numbers ``recurrent`` keep a state instead of keys and values.
    """

    def __init__(
        self, layers: int, max_rows: int, longest: int, cells: int, *, paged: bool, recurrent: Container[int] = ()
    ) -> None:
        self.max_rows = max_rows
        self.longest = longest
        self.cells = cells
        self.paged = paged
        """Whether the system gives memory page by page; else rows and capacity grow."""
        self.rows = 0
        self.capacity = 0
        self.generation = 0
        """Changes whenever the stores are other tensors than before."""
        self.plan: Plan = Prefill(0, [0], [0], None)
        self.layers = [StateLayer(self) if layer in recurrent else SlotLayer(self) for layer in range(layers)]
        self.cache = Cache(layers=self.layers)
        self._state_layers = [layer for layer in self.layers if isinstance(layer, StateLayer)]
        self._cells_per_row = 0
        self._held = [0] * max_rows
        """Cells per slot that have memory, when paged."""

    def reserve(self, lengths: list[int]) -> bool:
        """Make room for ``lengths[i]`` tokens in slot i; False, and nothing changed, when that is over the limit.

        What the slots 0..len(lengths)-1 hold is kept; what others hold may be lost.
        """
        if len(lengths) > self.max_rows or max(lengths) > self.longest:
            return False
        # Where slots grow, the last cell of each is kept free for rows that only pad (padded.py).
        return self._reserve_pages(lengths) if self.paged else self._grow(len(lengths), max(lengths) + 1)

    def _reserve_pages(self, lengths: list[int]) -> bool:
        needs = [self._need(length) for length in lengths]
        needs += [0] * (self.max_rows - len(needs))
        if sum(map(max, needs, self._held)) > self.cells:
            if sum(needs) > self.cells:
                return False
            self._trim(needs)
        self._held = list(map(max, needs, self._held))
        if not self.rows:
            self._set_shape(self.max_rows, whole(_round_up(self.longest)), (0, 0))
        return True

    def _trim(self, needs: list[int]) -> None:
        """Give back what slots hold beyond ``needs``."""
        for row, (need, held) in enumerate(zip(needs, self._held, strict=True)):
            if held > need:
                for layer in self.layers:
                    layer.discard(row, max(need - self.cells_per_row, 0))
                self._held[row] = need

    def _need(self, length: int) -> int:
        """What a slot of ``length`` tokens takes, in cells."""
        return min(_round_up(length), self.longest) + self.cells_per_row if length else 0

    def _grow(self, rows: int, length: int) -> bool:
        if rows <= self.rows and length <= self.capacity:
            return True
        capacity = _round_up(length)
        generous = (min(self.max_rows, 1 << (rows - 1).bit_length()), _round_up(length + max(length // 2, 128)))
        for new_rows, new_capacity in (
            (max(self.rows, generous[0]), max(self.capacity, generous[1])),
            (max(self.rows, rows), max(self.capacity, capacity)),
            (rows, capacity),
        ):
            # One slot as long as the context is always allowed, whatever rounding makes of it.
            state = self.cells_per_row
            if new_rows * (new_capacity + state) <= max(self.cells, _round_up(self.longest + 1) + state):
                kept = min(self.rows, rows), min(self.capacity, length)
                self._set_shape(new_rows, new_capacity, kept)
                return True
        return False

    def _set_shape(self, rows: int, capacity: int, kept: tuple[int, int]) -> None:
        self.rows, self.capacity = rows, capacity
        self.generation += 1
        for layer in self.layers:
            layer.resize(*kept)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot into another."""
        self._held[target] = max(self._held[target], self._need(length))
        for layer in self.layers:
            layer.copy(source, target, length)

    def release(self) -> None:
        """Give the memory of all slots back; the next ``reserve`` starts anew."""
        self.rows = self.capacity = 0
        self._held = [0] * self.max_rows
        for layer in self.layers:
            layer.release()

    @property
    def resumable(self) -> bool:
        """Whether a sequence can go on from any of its tokens: not where a state stands for all of them."""
        return not self._state_layers

    @property
    def cells_per_row(self) -> int:
        """What a slot takes beside its tokens, in cells."""
        if self._state_layers and not self._cells_per_row and (per_token := self.bytes_per_token):
            self._cells_per_row = -(-self.bytes_per_row // per_token)
        return self._cells_per_row

    @property
    def held(self) -> int:
        """Tokens that memory is taken for."""
        return sum(self._held) if self.paged else self.rows * self.capacity

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one cell over all layers. Known after the first pass."""
        stores = [store for layer in self.layers for store in layer.stores]
        return sum(store.element_size() * store.shape[1] * store.shape[3] for store in stores)

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a slot takes whatever its length. Known after the first pass."""
        return sum(layer.bytes_per_row for layer in self._state_layers)


def _round_up(capacity: int) -> int:
    return -(-capacity // ROUND) * ROUND
