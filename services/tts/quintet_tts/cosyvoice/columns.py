"""The keys and values of many sentences that are being said together.

A sentence is a row, and all rows end at the same column. So the distance from the newest position to a column is the
same for all rows, and one table of relative positions does for the whole batch; what differs is where a row starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quintet_tts.cosyvoice.encoder import sines

if TYPE_CHECKING:
    from quintet_tts.cosyvoice.encoder import Encoder

GRAIN = 256
"""Columns by which the room grows."""


class Columns:
    """Rows of keys and values [B, H, columns, D] for each block of ``encoder``."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        parameter = encoder.after_norm.weight
        self._dtype, self._device = parameter.dtype, parameter.device
        self._starts: list[int] = []
        self._end = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._positions: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def room(self) -> tuple[int, int]:
        """Rows and columns that there is memory for."""
        return (self._keys[0].shape[0], self._keys[0].shape[2]) if self._keys else (0, 0)

    def add(self, cache: list[tuple[Tensor, Tensor]]) -> None:
        """A new last row, of what a prefill returns: [1, H, N, D] for each block."""
        length = cache[0][0].shape[2]
        self._reserve(len(self) + 1, length)
        row, end = len(self), self._end
        self._starts.append(end - length)
        for (key, value), keys, values in zip(cache, self._keys, self._values, strict=True):
            keys[row, :, end - length : end] = key[0]
            values[row, :, end - length : end] = value[0]

    def remove(self, row: int) -> None:
        """Take a row out; the last one gets its number. With the last row all memory is given back."""
        last = len(self) - 1
        if row != last:
            for each in (*self._keys, *self._values):
                each[row, :, : self._end] = each[last, :, : self._end]
            self._starts[row] = self._starts[last]
        self._starts.pop()
        if not self._starts:
            self._end, self._keys, self._values = 0, [], []

    def open_column(self) -> Tensor:
        """Begin a step: one more column for every row. Returns the mask [B, 1, 1, columns] to be added to scores."""
        self._reserve(len(self), 0)
        self._end += 1
        first = min(self._starts)
        starts = torch.tensor(self._starts, device=self._device).reshape(-1, 1, 1, 1)
        columns = torch.arange(first, self._end, device=self._device)
        mask = torch.zeros(len(self), 1, 1, self._end - first, dtype=self._dtype, device=self._device)
        return mask.masked_fill(columns < starts, -torch.inf)

    def put(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the newest column of a block with [B, H, 1, D]; returns all its keys and values that are in use."""
        rows, first = len(self), min(self._starts)
        keys, values = self._keys[block], self._values[block]
        keys[:rows, :, self._end - 1] = key[:, :, 0]
        values[:rows, :, self._end - 1] = value[:, :, 0]
        return keys[:rows, :, first : self._end], values[:rows, :, first : self._end]

    def positions(self, block: int) -> Tensor:
        """The relative positions [H, columns, D] of the columns in use, seen from the newest."""
        table = self._positions[block]
        return table[:, table.shape[1] - (self._end - min(self._starts)) :]

    def _reserve(self, rows: int, length: int) -> None:
        """Have room for ``rows``, of which one is ``length`` long, and for one column more.

        Where that is too much for what there is, everything moves: to the left, where rows that have ended have left
        columns that nobody uses any more, or to more memory.
        """
        used = self._end - min(self._starts, default=self._end)
        length = max(length, used)
        have_rows, have_columns = self.room
        if rows <= have_rows and length <= self._end < have_columns:
            return
        if rows > have_rows:
            have_rows = max(rows, 2 * have_rows)
        have_columns = max(have_columns, -(-(length + GRAIN // 2) // GRAIN) * GRAIN)
        shift = length - self._end
        self._keys = [self._moved(each, have_rows, have_columns, shift, used) for each in self._blocks(self._keys)]
        self._values = [self._moved(each, have_rows, have_columns, shift, used) for each in self._blocks(self._values)]
        self._starts = [start + shift for start in self._starts]
        self._end = length
        if not self._positions or self._positions[0].shape[1] < have_columns:
            self._positions = self._tables(have_columns)

    def _blocks(self, tensors: list[Tensor]) -> list[Tensor | None]:
        return [*tensors] or [None] * self._encoder.config.blocks

    def _moved(self, old: Tensor | None, rows: int, columns: int, shift: int, used: int) -> Tensor:
        config = self._encoder.config
        # Zeros, not whatever the memory held: a masked NaN would still be a NaN.
        new = torch.zeros(
            rows, config.heads, columns, config.width // config.heads, dtype=self._dtype, device=self._device
        )
        if old is not None and used:
            end, kept = self._end, len(self)
            new[:kept, :, end + shift - used : end + shift] = old[:kept, :, end - used : end]
        return new

    def _tables(self, columns: int) -> list[Tensor]:
        distances = torch.arange(columns - 1, -1, -1, device=self._device)
        table = sines(distances, self._encoder.config.width).to(self._dtype)
        return [block.self_attn.positions(table).contiguous() for block in self._encoder.blocks]
