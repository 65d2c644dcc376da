"""Which blocks of a pool hold the tokens of which slot.

Block 0 is scratch: what only pads a pass is written there, and rows of the table are filled up with it. Slots that
begin with the same text share its whole blocks; a block is free again when no slot has it.
"""

from __future__ import annotations

import numpy as np
import torch

SCRATCH = 0


class Table:
    """Blocks of ``block`` tokens for ``rows`` slots. There are none until ``extend`` makes some."""

    def __init__(self, rows: int, block: int) -> None:
        self.block = block
        self.size = 1
        """How many blocks there are, with the scratch block."""
        self._numbers = np.full((rows, 1), SCRATCH, np.int32)
        """[rows, blocks of the longest slot or more]."""
        self._rows: list[list[int]] = [[] for _ in range(rows)]
        self._free: list[int] = []
        self._uses = [1]
        """By how many slots each block is had."""

    @property
    def used(self) -> int:
        """How many blocks are some slot's."""
        return self.size - 1 - len(self._free)

    def blocks(self, length: int) -> int:
        """How many blocks ``length`` tokens take."""
        return -(-length // self.block)

    def rows(self, rows: list[int], blocks: int) -> torch.Tensor:
        """The first ``blocks`` blocks of the slots ``rows``: int32 [slots, blocks], a copy."""
        found = np.full((len(rows), blocks), SCRATCH, np.int32)
        had = self._numbers[rows, :blocks]
        found[:, : had.shape[1]] = had
        return torch.from_numpy(found)

    def missing(self, needs: list[int]) -> int:
        """How many blocks the slots 0..len(needs)-1 lack to have ``needs``."""
        return sum(max(need - len(had), 0) for need, had in zip(needs, self._rows, strict=False))

    def kept(self, needs: list[int]) -> int:
        """How many blocks are in use once every slot is trimmed to ``needs``, and those behind them to nothing."""
        return len({number for need, had in zip(needs, self._rows, strict=False) for number in had[:need]})

    def fit(self, needs: list[int]) -> None:
        """Give the slots exactly ``needs`` blocks and the others none; there must be enough that are free by then."""
        for row, had in enumerate(self._rows):
            if len(had) > (need := needs[row] if row < len(needs) else 0):
                self._trim(row, need)
        for row, need in enumerate(needs):
            if lacked := need - len(self._rows[row]):
                self._rows[row] += [self._take() for _ in range(lacked)]
                self._write(row)

    def extend(self, size: int) -> None:
        """Let there be ``size`` blocks."""
        self._free += range(size - 1, self.size - 1, -1)
        self._uses += [0] * (size - self.size)
        self.size = size

    def shrink(self, size: int) -> None:
        """Take back what ``extend`` made beyond ``size`` blocks; none of it may be in use."""
        self._free = [number for number in self._free if number < size]
        del self._uses[size:]
        self.size = size

    def free(self, row: int) -> None:
        """Take a slot its blocks."""
        self._trim(row, 0)

    def clear(self) -> None:
        """Take all slots their blocks."""
        for row in range(len(self._rows)):
            self._trim(row, 0)

    def move(self, source: int, target: int, length: int) -> None:
        """Hand the first ``length`` tokens of a slot over to another, in exchange for blocks that hold nothing."""
        count = self.blocks(length)
        mine, theirs = self._rows[source], self._rows[target]
        mine[:count], theirs[:count] = theirs[:count], mine[:count]
        self._write(source)
        self._write(target)

    def share(self, source: int, target: int, length: int) -> tuple[int, int] | None:
        """Let a slot begin with the first ``length`` tokens of another, before the blocks that it has.

        Of these it must have one if the tokens fill a block in part: that stays each slot's own, to be copied. Returns
        its number in the one and in the other.
        """
        whole, rest = divmod(length, self.block)
        shared = self._rows[source][:whole]
        for number in shared:
            self._uses[number] += 1
        own = self._rows[target]
        own[:0] = shared
        self._write(target)
        return (self._rows[source][whole], own[whole]) if rest else None

    def check(self, row: int, start: int, end: int) -> None:
        """Raise RuntimeError unless a slot has blocks of its own for its tokens ``start`` to ``end - 1``."""
        had = self._rows[row]
        last = self.blocks(end)
        if last > len(had) or any(self._uses[number] > 1 for number in had[start // self.block : last]):
            raise RuntimeError(f"slot {row} has no blocks of its own for tokens {start} to {end - 1}")

    def _trim(self, row: int, count: int) -> None:
        had = self._rows[row]
        if len(had) > count:
            for number in had[count:]:
                self._release(number)
            del had[count:]
            self._write(row)

    def _take(self) -> int:
        number = self._free.pop()
        self._uses[number] = 1
        return number

    def _release(self, number: int) -> None:
        self._uses[number] -= 1
        if not self._uses[number]:
            self._free.append(number)

    def _write(self, row: int) -> None:
        had = self._rows[row]
        if len(had) > self._numbers.shape[1]:
            self._numbers = np.pad(self._numbers, ((0, 0), (0, 2 * len(had) - self._numbers.shape[1])))
        self._numbers[row, : len(had)] = had
        self._numbers[row, len(had) :] = SCRATCH
