"""Decode steps in a few padded shapes, each recorded once and then replayed: CUDA graphs.

On a GPU a decode step of a small model is bound by launching its kernels; a graph launches them all at once, but only
for the shapes and addresses that it was recorded with. So the number of rows and the length that attention reads are
rounded up to buckets. Rows that only pad write their key and value into the last cell of their slot, which no sequence
ever reaches (``SlotCache`` keeps it free), and their logits are dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from quintet_chat.engine.slots import Decode, SlotCache

log = logging.getLogger("quintet.chat")

Forward = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor], torch.Tensor]
"""``ids`` [rows, 1], where they lie in their slots [rows, 1], keys that attention reads, what the model takes their
positions to be [rows, 1] -> float32 logits [rows, vocabulary]."""

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

    def __init__(self, rows: int, device: torch.device) -> None:
        self.ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.positions = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.places = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.step: Callable[[], torch.Tensor]

    def fill(self, ids: torch.Tensor, positions: torch.Tensor, places: torch.Tensor) -> None:
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.places.copy_(places)


class PaddedDecode:
    """Runs decode steps of ``forward`` over ``slots``, which are not paged, in recorded shapes."""

    def __init__(self, forward: Forward, slots: SlotCache, device: torch.device, record: Record | None = None) -> None:
        self._forward = forward
        self._slots = slots
        self._device = device
        self._record = record or _Graphs()
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._generation = slots.generation
        self._works = True

    def __call__(self, tokens: list[int], positions: list[int], shifts: list[int] | None = None) -> torch.Tensor | None:
        """Logits [n, vocabulary] of the slots 0..n-1, overwritten by the next call; None once recording has failed."""
        if not self._works:
            return None
        if self._generation != self._slots.generation:  # the stores that the graphs know are gone
            self._shapes.clear()
            self._generation = self._slots.generation
        key = (
            rows_bucket(len(tokens), self._slots.rows),
            length_bucket(max(positions) + 1, self._slots.capacity),
        )
        padding = key[0] - len(tokens)
        ids = torch.tensor([*tokens, *[0] * padding])[:, None]
        where = torch.tensor([*positions, *[self._slots.capacity - 1] * padding])[:, None]
        places = where if shifts is None else where + torch.tensor([*shifts, *[0] * padding])[:, None]
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _Shape(key[0], self._device)
            shape.fill(ids, where, places)
            if not self._recorded(shape, key):
                return None
        shape.fill(ids, where, places)
        return shape.step()[: len(tokens)]

    def _recorded(self, shape: _Shape, key: tuple[int, int]) -> bool:
        def step() -> torch.Tensor:
            self._slots.plan = Decode(shape.positions[:, 0], key[1])
            return self._forward(shape.ids, shape.positions, key[1], shape.places)

        try:
            shape.step = self._record(step)
        except RuntimeError as error:
            # A model that looks at its numbers while it runs cannot be recorded; it runs as it is.
            log.warning("decode steps are not recorded as CUDA graphs: %s", str(error).splitlines()[0])
            self._shapes.clear()
            self._works = False
        return self._works


class _Graphs:
    """Records CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        # Libraries choose kernels and take workspaces at the first runs, which must not happen while recording.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay
