"""The KV cache on a GPU: slots made of blocks of a pool per layer, found by a table that all layers share.

A slot is given memory block by block, so that a long answer makes nobody else's slot longer. The pools grow by need,
doubling, up to the limit in cells; nothing else changes where they are, so that recorded steps (padded.py) go on with
a new table. What attention reads is either gathered, in the shape of plain slots, or found by the table (flash.py).
"""

from __future__ import annotations

import logging
from collections.abc import Container

import torch

from quintet_chat.engine.flash import Flash, Packed
from quintet_chat.engine.slots import KeyValueLayer, SlotCache
from quintet_chat.engine.table import SCRATCH, Table

log = logging.getLogger("quintet.chat")

LEAST_BLOCKS = 16
"""Blocks of a pool to begin with."""

LEAST_GATHERED = 1 << 15
"""Tokens that one pass may gather in any case, padded to the longest slot's; beyond the limit in cells it may not."""


class BlockPlan:
    """A pass over ``rows`` slots whose blocks ``table`` [rows, blocks] names; see ``slots.Plan``."""

    def __init__(self, rows: slice, start: int, table: torch.Tensor, block: int, flash: Flash | None) -> None:
        self.rows = rows
        self.start = start
        self.length = table.shape[1] * block
        self.begins = False
        self.flash = flash
        """How the blocks are read; None to gather them."""
        self._fresh = False
        self._table = table
        self._block = block
        self._tables = {table.device: table}
        self._cells: dict[torch.device, torch.Tensor] = {}
        self._packed: dict[torch.device, Packed] = {}

    def put(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write ``new`` [batch, heads, queries, size] into the pool ``store``; return what attention reads."""
        if store.device not in self._cells:
            self._cells[store.device] = self._find_cells(new.shape[2]).to(store.device)
        store.flatten(0, 1).index_copy_(0, self._cells[store.device], new.transpose(1, 2).flatten(0, 1))
        if self._fresh:
            return new
        if self.flash is not None:
            return store
        if store.device not in self._tables:
            self._tables[store.device] = self._table.to(store.device)
        table = self._tables[store.device]
        found = store.index_select(0, table.flatten()).view(*table.shape, *store.shape[1:])
        return found.flatten(1, 2).transpose(1, 2)

    def packed(self, device: torch.device) -> Packed:
        """The same pass for ``flash.attention``, for layers on ``device``. After ``put``."""
        if device not in self._packed:
            self._packed[device] = self._pack().to(device)
        return self._packed[device]

    def _find_cells(self, queries: int) -> torch.Tensor:
        """Where the tokens go, counted through all blocks: [batch * queries]."""
        raise NotImplementedError

    def _pack(self) -> Packed:
        raise NotImplementedError

    def _blocks_begin(self) -> torch.Tensor:
        rows = torch.arange(len(self._table) + 1, dtype=torch.int32, device=self._table.device)
        return rows * self.length


class BlockPrefill(BlockPlan):
    """Pieces of prompts, right-padded to one length: ``counts[i]`` tokens behind the ``starts[i]`` of each slot."""

    def __init__(
        self, rows: slice, starts: list[int], counts: list[int], table: torch.Tensor, block: int, flash: Flash | None
    ) -> None:
        super().__init__(rows, max(starts), table, block, flash)
        self.begins = not any(starts)
        self._starts, self._counts = torch.tensor(starts), torch.tensor(counts)
        self._real = torch.empty(0)

    def read_itself(self) -> None:
        """Let attention read what the pass computes, and no blocks: for prompts that all begin at 0."""
        self._fresh = True
        self.length = int(self._counts.max())

    def _find_cells(self, queries: int) -> torch.Tensor:
        steps = torch.arange(queries)
        self._real = steps < self._counts[:, None]
        # What pads goes to the beginning of the scratch block.
        positions = (self._starts[:, None] + steps) * self._real
        cells = self._table.long().gather(1, positions // self._block) * self._block + positions % self._block
        return cells.where(self._real, SCRATCH).flatten()

    def _pack(self) -> Packed:
        tokens = None if bool(self._real.all()) else self._real.flatten().nonzero()[:, 0]
        ends = torch.nn.functional.pad(self._counts.cumsum(0), (1, 0)).int()
        most = int(self._counts.max())
        if self._fresh:
            return Packed(tokens, ends, ends, most, most, None, None)
        lengths = (self._starts + self._counts).int()
        return Packed(tokens, ends, self._blocks_begin(), most, self.length, lengths, self._table)


class BlockDecode(BlockPlan):
    """One token each for the first slots, at ``positions`` [slots], on the same device as ``table``."""

    def __init__(self, positions: torch.Tensor, table: torch.Tensor, block: int, flash: Flash | None) -> None:
        super().__init__(slice(0, len(positions)), 0, table, block, flash)
        self.start = self.length - 1
        self.positions = positions

    def _find_cells(self, queries: int) -> torch.Tensor:  # noqa: ARG002
        blocks = self._table.long().gather(1, (self.positions // self._block)[:, None])[:, 0]
        return blocks * self._block + self.positions % self._block

    def _pack(self) -> Packed:
        each = torch.arange(len(self.positions) + 1, dtype=torch.int32, device=self.positions.device)
        lengths = (self.positions + 1).int()
        return Packed(None, each, self._blocks_begin(), 1, self.length, lengths, self._table)


class BlockLayer(KeyValueLayer):
    """One layer's pools, [blocks, tokens, heads, head size]; allocated at the first pass."""

    def __init__(self, slots: BlockCache) -> None:
        super().__init__(slots)
        self._blocks = slots

    def allocate(self) -> None:
        """Let the pools have as many blocks as the table counts, and keep what is in them."""
        for index, kind in enumerate(self.kinds):
            shape = (self._blocks.table.size, self._blocks.table.block, kind.heads, kind.size)
            # Zeros: what is masked is still multiplied, and NaN times nothing is NaN.
            new = torch.zeros(shape, dtype=kind.dtype, device=kind.device)
            if index < len(self.stores):
                kept = min(len(new), len(self.stores[index]))
                new[:kept] = self.stores[index][:kept]
            self.stores[index : index + 1] = [new]
            if kind.device.type == "cuda":
                torch.cuda.empty_cache()  # or the next pool, which is larger than any freed one, comes on top

    def read(self, row: int, first: int, last: int) -> list[torch.Tensor]:
        return [store.flatten(0, 1)[self._blocks.cells_of(row, first, last, store.device)] for store in self.stores]

    def write(self, row: int, first: int, parts: list[torch.Tensor]) -> None:
        for store, part in zip(self.stores, parts, strict=True):
            store.flatten(0, 1)[self._blocks.cells_of(row, first, first + len(part), store.device)] = part

    def copy_block(self, source: int, target: int) -> None:
        for store in self.stores:
            store[target] = store[source]

    def release(self) -> None:
        self.stores = []


class BlockCache(SlotCache):
    """All layers' slots in blocks of ``block`` tokens, each layer's on its own device."""

    paged = False

    def __init__(
        self,
        layers: int,
        max_rows: int,
        longest: int,
        cells: int,
        *,
        block: int,
        recurrent: Container[int] = (),
        hybrid: Container[int] = (),
    ) -> None:
        self.table = Table(max_rows, block)
        super().__init__(layers, max_rows, longest, cells, recurrent=recurrent, hybrid=hybrid)
        self.flash: Flash | None = None
        """How attention reads; None to gather."""
        self._cells_of: tuple[tuple[int, int, int, torch.device], torch.Tensor] | None = None

    def _layer(self) -> KeyValueLayer:
        return BlockLayer(self)

    def reserve(self, lengths: list[int]) -> bool:
        if len(lengths) > self.max_rows or max(lengths) > self.longest:
            return False
        table, needs = self.table, [self.table.blocks(length) for length in lengths]
        missing = table.missing(needs)
        rows = self.max_rows if self.resumable else self._rows_for(len(lengths), table.kept(needs) + missing)
        limit = self._limit(rows)
        if table.used + missing > min(limit, table.size - 1):
            wanted = table.kept(needs) + missing
            if wanted > limit or not self._extend(wanted, limit):
                return False
        if rows != self.rows:
            self._set_rows(rows, len(lengths))
        table.fit(needs)
        self._cells_of = None
        return True

    def _rows_for(self, rows: int, blocks: int) -> int:
        """How many rows of states to have: what there is and some more, if there is memory for it, or just ``rows``."""
        generous = min(self.max_rows, 1 << (rows - 1).bit_length())
        choices = (max(self.rows, generous), max(self.rows, rows))
        return next((choice for choice in choices if blocks <= self._limit(choice)), rows)

    def _limit(self, rows: int) -> int:
        """How many blocks slots may have beside the states of ``rows``."""
        # One slot as long as the context is always allowed, whatever rounding makes of it.
        cells = max(self.cells, self.table.blocks(self.longest) * self.table.block + self.cells_per_row)
        return (cells - rows * self.cells_per_row) // self.table.block

    def _extend(self, wanted: int, limit: int) -> bool:
        """Let there be ``wanted`` blocks beside the scratch block; False when the device has no memory for them."""
        if wanted < self.table.size:
            return True
        held = self.table.size
        for blocks in (min(limit, max(wanted, 2 * held, LEAST_BLOCKS)), wanted):
            self.table.extend(blocks + 1)
            try:
                self._allocate()
            except torch.OutOfMemoryError:
                self.table.shrink(held)
            else:
                return True
        if not self.table.used:
            raise torch.OutOfMemoryError(f"the device has no memory for {wanted * self.table.block} tokens")
        # Not to be tried again at every step.
        self.cells = min(self.cells, (held - 1) * self.table.block + self.rows * self.cells_per_row)
        log.warning(
            "the device has no memory for %d tokens: %d are all that run at once", wanted * self.table.block, self.cells
        )
        return False

    def _allocate(self) -> None:
        self.generation += 1
        for layer in self.layers:
            if isinstance(layer, BlockLayer):
                layer.allocate()

    def _set_rows(self, rows: int, kept: int) -> None:
        kept = min(self.rows, kept)
        self.rows = rows
        for layer in self._state_layers:
            layer.resize(kept, 0)

    def prefill(self, row: int, starts: list[int], counts: list[int], *, fresh: bool) -> BlockPrefill:
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            self.table.check(row + index, start, end)
        table = self.table.rows(list(range(row, row + len(starts))), self.table.blocks(max(ends)))
        plan = BlockPrefill(slice(row, row + len(starts)), starts, counts, table, self.table.block, self.flash)
        if fresh:
            plan.read_itself()
        return plan

    def decode(self, positions: list[int], rows: list[int] | None = None) -> BlockDecode:
        """The plan of a decode step of the slots 0..n-1, or of ``rows``, which are one where there are states."""
        table = self.tables_of(positions, self.table.blocks(max(positions) + 1), rows)
        plan = self.plan_of(torch.tensor(positions), table)
        if rows is not None:
            plan.rows = slice(rows[0], rows[0] + 1)
        return plan

    def at_once(self, rows: int, length: int) -> bool:
        """Whether a pass over ``rows`` slots may read ``length`` tokens of each: gathered they must have room."""
        return self.flash is not None or rows * length <= max(self.cells, LEAST_GATHERED)

    def apart(self, positions: list[int]) -> list[list[int]]:
        """The slots 0..n-1, which are at ``positions``, in groups whose tokens can be read at once."""
        left = sorted(range(len(positions)), key=positions.__getitem__, reverse=True)
        groups = []
        while left:
            count = len(left) if self.resumable else 1
            while count > 1 and not self.at_once(count, positions[left[0]] + 1):
                count -= 1
            groups.append(left[:count])
            left = left[count:]
        return groups

    def tables_of(self, positions: list[int], blocks: int, rows: list[int] | None = None) -> torch.Tensor:
        """The first ``blocks`` blocks of slots, 0..n-1 or ``rows``, which write at ``positions`` next: [n, blocks]."""
        rows = list(range(len(positions))) if rows is None else rows
        for row, position in zip(rows, positions, strict=True):
            self.table.check(row, position, position + 1)
        return self.table.rows(rows, blocks)

    def plan_of(self, positions: torch.Tensor, table: torch.Tensor) -> BlockDecode:
        """A decode step over tensors, which may be given other values before it is run again."""
        return BlockDecode(positions, table, self.table.block, self.flash)

    def cells_of(self, row: int, first: int, last: int, device: torch.device) -> torch.Tensor:
        """Where tokens of a slot are, counted through all blocks. Layers ask for the same again and again."""
        key = (row, first, last, device)
        if self._cells_of is None or self._cells_of[0] != key:
            positions = torch.arange(first, last)
            blocks = self.table.rows([row], self.table.blocks(last))[0].long()[positions // self.table.block]
            cells = blocks * self.table.block + positions % self.table.block
            self._cells_of = key, cells.to(device)
        return self._cells_of[1]

    def shared(self, length: int) -> int:
        return length // self.table.block * self.table.block

    def copy(self, source: int, target: int, length: int) -> None:
        pair = self.table.share(source, target, length)
        self._cells_of = None
        for layer in self.layers:
            if not isinstance(layer, BlockLayer):
                layer.copy(source, target, length)
            elif pair is not None:
                layer.copy_block(*pair)

    def move(self, source: int, target: int, length: int) -> None:
        self.table.move(source, target, length)
        self._cells_of = None
        for layer in self._state_layers:
            layer.copy(source, target, length)

    def free(self, row: int) -> None:
        self.table.free(row)

    def rest(self) -> None:
        """Take all slots their blocks. The pools stay as they are, and with them what was recorded."""
        self.table.clear()

    def release(self) -> None:
        self._cells_per_row = self.cells_per_row
        self.table = Table(self.max_rows, self.table.block)
        self.rows = 0
        self.generation += 1
        for layer in self.layers:
            layer.release()

    def usage(self, tokens: int) -> float:  # noqa: ARG002
        return min(self.table.used * self.table.block / self.cells, 1.0)

    @property
    def held(self) -> int:
        return self.table.used * self.table.block + self.rows * self.cells_per_row
