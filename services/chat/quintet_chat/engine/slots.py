"""The KV cache: one slot (row) per sequence, under an unmodified transformers model.

Before each forward pass the runner sets a plan, which says where the pass writes and what it reads. Memory is taken by
need, in tokens that slots hold, within a limit in cells (tokens).

Here as it is on a CPU: each layer holds keys and values as [rows, heads, capacity, head size]. A slot's tokens lie at
0..n-1 of its row; what lies behind is masked, and attention gets plain views. The slots are as long as the context from
the beginning, and the system gives them memory page by page (pages.py). On a GPU they are made of blocks (blocks.py).
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NamedTuple, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from quintet_chat.engine.pages import Pages
from quintet_chat.engine.states import HybridLayer, StateLayer

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


class DecodePlan(Plan, Protocol):
    """Of one token each for the first slots."""

    positions: torch.Tensor
    """Where in their slots, [slots]."""


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
        self.positions = positions
        self._numbers = torch.arange(len(positions))

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        store[self._numbers, :, self.positions] = new[:, :, 0]
        return store[: len(self.positions), :, : self.length]


class _Kind(NamedTuple):
    """What keys, values or the like of a layer are like."""

    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device


class KeyValueLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values; allocated at the first pass, when their shape is known."""

    is_sliding = False

    def __init__(self, slots: SlotCache) -> None:
        super().__init__()
        self._slots = slots
        self.kinds: list[_Kind] = []
        """Of keys and of values, once they are known, and of an indexer's keys where there is one."""
        self.stores: list[torch.Tensor] = []
        """Of these, once there are any."""
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.kinds = [_kind(key_states), _kind(value_states)]
        self.allocate()

    def allocate(self) -> None:
        """Make the stores that there are not, as large as the cache is."""
        raise NotImplementedError

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.stores:
            self.lazy_initialization(key_states, value_states)
        plan, (keys, values) = self._slots.plan, self.stores[:2]
        return plan.put(keys, key_states), plan.put(values, value_states)

    def update_indexer(self, keys: torch.Tensor) -> torch.Tensor:
        """The same of the keys [batch, queries, size] by which sparse attention chooses what it reads."""
        new = keys[:, None]
        if len(self.stores) < 3:
            self.kinds.append(_kind(new))
            self.allocate()
        return self._slots.plan.put(self.stores[2], new)[:, 0]

    def read(self, row: int, first: int, last: int) -> list[torch.Tensor]:
        """What is stored of the tokens ``first`` to ``last - 1`` of a slot, [tokens, heads, head size] each."""
        raise NotImplementedError

    def write(self, row: int, first: int, parts: list[torch.Tensor]) -> None:
        """Put what ``read`` gave into a slot, from token ``first`` on."""
        raise NotImplementedError

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot into another."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the memory back."""
        raise NotImplementedError

    @property
    def bytes_per_token(self) -> int:
        """Known after the first pass."""
        return sum(kind.heads * kind.size * kind.dtype.itemsize for kind in self.kinds)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self._slots.plan.length, 0

    def get_seq_length(self) -> int:
        return self._slots.plan.start

    def get_max_length(self) -> int:
        return -1


class SlotLayer(KeyValueLayer):
    """Keys and values as [rows, heads, capacity, head size]."""

    def __init__(self, slots: SlotCache) -> None:
        super().__init__(slots)
        self._pages: list[Pages] = []

    def allocate(self) -> None:
        for kind in self.kinds[len(self._pages) :]:
            self._pages.append(Pages((self._slots.rows, kind.heads, self._slots.capacity, kind.size), kind.dtype))
            self.stores.append(self._pages[-1].tensor)

    def read(self, row: int, first: int, last: int) -> list[torch.Tensor]:
        return [store[row, :, first:last].transpose(0, 1) for store in self.stores]

    def write(self, row: int, first: int, parts: list[torch.Tensor]) -> None:
        for store, part in zip(self.stores, parts, strict=True):
            store[row, :, first : first + len(part)] = part.transpose(0, 1)

    def copy(self, source: int, target: int, length: int) -> None:
        for store in self.stores:
            store[target, :, :length] = store[source, :, :length]

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


class SlotCache:
    """All layers' slots: at most ``max_rows`` of at most ``longest`` tokens, ``cells`` tokens in all.

    The layers with the numbers ``recurrent`` keep a state instead of keys and values, those ``hybrid`` both.
    """

    paged = True
    """Whether the system gives memory page by page."""

    def __init__(
        self,
        layers: int,
        max_rows: int,
        longest: int,
        cells: int,
        *,
        recurrent: Container[int] = (),
        hybrid: Container[int] = (),
    ) -> None:
        self.max_rows = max_rows
        self.longest = longest
        self.cells = cells
        self.rows = 0
        self.capacity = 0
        self.generation = 0
        """Changes whenever the stores are other tensors than before."""
        self.plan: Plan = Prefill(0, [0], [0], None)
        self.layers: list[KeyValueLayer | StateLayer] = []
        """What is kept; of a hybrid layer first keys and values, then states."""
        seen: list[KeyValueLayer | StateLayer] = []
        for layer in range(layers):
            parts = [StateLayer(self)] if layer in recurrent else [self._layer()]
            if layer in hybrid:
                parts.append(HybridLayer(self, parts[0]))
            self.layers += parts
            seen.append(parts[-1])
        self.cache = Cache(layers=seen)
        self._state_layers = [layer for layer in self.layers if isinstance(layer, StateLayer)]
        self._cells_per_row = 0
        self._held = [0] * max_rows
        """Cells per slot that have memory."""

    def _layer(self) -> KeyValueLayer:
        return SlotLayer(self)

    def reserve(self, lengths: list[int]) -> bool:
        """Make room for ``lengths[i]`` tokens in slot i; False, and nothing changed, when that is over the limit.

        What the slots 0..len(lengths)-1 hold is kept; what others hold may be lost.
        """
        if len(lengths) > self.max_rows or max(lengths) > self.longest:
            return False
        needs = [self._need(length) for length in lengths]
        needs += [0] * (self.max_rows - len(needs))
        if sum(map(max, needs, self._held)) > self.cells:
            if sum(needs) > self.cells:
                return False
            self._trim(needs)
        self._held = list(map(max, needs, self._held))
        if not self.rows:
            self.rows, self.capacity = self.max_rows, whole(_round_up(self.longest))
            self.generation += 1
            for layer in self.layers:
                if isinstance(layer, KeyValueLayer):
                    layer.allocate()
        return True

    def prefill(self, row: int, starts: list[int], counts: list[int], *, fresh: bool) -> Plan:
        """The plan of a pass over pieces of prompts: ``counts[i]`` tokens behind ``starts[i]`` of slot ``row + i``.

        If it is ``fresh``, all begin at 0 and attention reads what the pass itself has computed.
        """
        return Prefill(row, starts, counts, None if fresh else self.capacity)

    def decode(self, positions: list[int]) -> DecodePlan:
        """The plan of a decode step of the slots 0..n-1."""
        return Decode(torch.tensor(positions), whole(max(positions) + 1, self.capacity))

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

    def shared(self, length: int) -> int:  # noqa: ARG002
        """How many of a slot's first ``length`` tokens take no memory in the slot that they are copied into."""
        return 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot into another, which keeps nothing and was reserved for what
        it is to hold, but for those that are ``shared``."""
        self._held[target] = max(self._held[target], self._need(length))
        for layer in self.layers:
            layer.copy(source, target, length)

    def move(self, source: int, target: int, length: int) -> None:
        """The same for a slot that is of no use afterwards; the other is reserved for all of it."""
        self.copy(source, target, length)

    def free(self, row: int) -> None:
        """Say that what a slot holds is of no use any more."""

    def rest(self) -> None:
        """Say that for a while nothing will run."""
        self.release()

    def release(self) -> None:
        """Give the memory of all slots back; the next ``reserve`` starts anew."""
        self._cells_per_row = self.cells_per_row  # while the states are there to be measured
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
        return sum(self._held)

    def usage(self, tokens: int) -> float:
        """The share of the cells that is in use, 0 to 1, when sequences have so many ``tokens`` in all."""
        return tokens / self.cells

    @property
    def bytes_per_token(self) -> int:
        """Of one cell over all layers. Known after the first pass."""
        return sum(layer.bytes_per_token for layer in self.layers if isinstance(layer, KeyValueLayer))

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a slot takes whatever its length. Known after the first pass."""
        return sum(layer.bytes_per_row for layer in self._state_layers)


def _kind(new: torch.Tensor) -> _Kind:
    """What ``new`` [batch, heads, queries, size] is like."""
    return _Kind(new.shape[1], new.shape[3], new.dtype, new.device)


def _round_up(capacity: int) -> int:
    return -(-capacity // ROUND) * ROUND
