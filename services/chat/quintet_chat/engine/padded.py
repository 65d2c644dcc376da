"""Decode steps in a few padded shapes, each recorded once and then replayed: CUDA graphs.

On a GPU a decode step of a small model is bound by launching its kernels; a graph launches them all at once, but only
for the shapes and addresses that it was recorded with. So the number of rows and of blocks that attention reads are
rounded up to buckets. Rows that only pad have the scratch block alone: they write and read its first cell, and their
logits are dropped. What was recorded is good until the pools of blocks grow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.slots import DecodePlan
from quintet_chat.engine.table import SCRATCH

log = logging.getLogger("quintet.chat")

Forward = Callable[[torch.Tensor, DecodePlan, torch.Tensor], torch.Tensor]
"""``ids`` [rows, 1], where they lie and what they read, what the model takes their positions to be [rows, 1] -> float32
logits [rows, vocabulary]."""

Record = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]
"""Makes of a step that reads and writes fixed tensors one that can be run again, with its result in one place."""

LEAST_LENGTH = 256
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96)
"""Buckets of rows; beyond, multiples of 64."""


def rows_bucket(rows: int, limit: int) -> int:
    """The least bucket for ``rows``, at most ``limit``."""
    return min(next((bucket for bucket in ROWS if bucket >= rows), -(-rows // 64) * 64), limit)


def length_bucket(length: int, limit: int) -> int:
    """The least bucket for ``length``: powers of two from 256 on, at most ``limit``."""
    return min(max(LEAST_LENGTH, 1 << (length - 1).bit_length()), limit)


class _Shape:
    """One shape's inputs, and its recorded step."""

    def __init__(self, rows: int, blocks: int, device: torch.device) -> None:
        self.ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.places = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.table = torch.zeros((rows, blocks), dtype=torch.int32, device=device)
        self.step: Callable[[], torch.Tensor]

    def fill(self, tokens: list[int], positions: list[int], shifts: list[int] | None, table: torch.Tensor) -> None:
        """Give it the inputs of a step of fewer rows, or as many."""
        padding = [0] * (len(self.ids) - len(tokens))
        ids, where, shift = (
            torch.tensor([*each, *padding]) for each in (tokens, positions, shifts or [0] * len(tokens))
        )
        self.ids.copy_(ids[:, None])
        self.positions.copy_(where)
        self.places.copy_((where + shift)[:, None])
        self.table.copy_(torch.nn.functional.pad(table, (0, 0, 0, len(padding)), value=SCRATCH))


class PaddedDecode:
    """Runs decode steps of ``forward`` over ``slots`` in recorded shapes."""

    def __init__(self, forward: Forward, slots: BlockCache, device: torch.device, record: Record) -> None:
        self._forward = forward
        self._slots = slots
        self._device = device
        self._record = record
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._generation = slots.generation
        self.works = True
        """Whether no recording has failed."""

    def __call__(self, tokens: list[int], positions: list[int], shifts: list[int] | None = None) -> torch.Tensor | None:
        """Logits [n, vocabulary] of the slots 0..n-1, overwritten by the next call.

        None once recording has failed, and for what is too much to be read at once.
        """
        if not self.works:
            return None
        if self._generation != self._slots.generation:  # the stores that the graphs know are gone
            self._shapes.clear()
            self._generation = self._slots.generation
        key = rows_bucket(len(tokens), self._slots.max_rows), self._blocks(max(positions) + 1)
        if not self._slots.at_once(key[0], key[1] * self._slots.table.block):
            return None
        table = self._slots.tables_of(positions, key[1])
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _Shape(*key, self._device)
            shape.fill(tokens, positions, shifts, table)
            if not self._recorded(shape):
                return None
        shape.fill(tokens, positions, shifts, table)
        return shape.step()[: len(tokens)]

    def _blocks(self, length: int) -> int:
        blocks = self._slots.table.blocks
        return blocks(length_bucket(length, self._slots.longest))

    def _recorded(self, shape: _Shape) -> bool:
        def step() -> torch.Tensor:
            return self._forward(shape.ids, self._slots.plan_of(shape.positions, shape.table), shape.places)

        try:
            shape.step = self._record(step)
        except RuntimeError as error:
            # A model that looks at its numbers while it runs cannot be recorded; it runs as it is.
            log.warning("decode steps are not recorded as CUDA graphs: %s", str(error).splitlines()[0])
            self._shapes.clear()
            self.works = False
        return self.works


class Graphs:
    """Records CUDA graphs of what runs on ``device``; they share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        # What is recorded is a stream's work, and a thread's streams are those of its current device.
        with torch.cuda.device(self._device):
            return self._recorded(step)

    def _recorded(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        # Libraries choose kernels and take workspaces at the first runs, which must not happen while recording.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            logits = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay
