"""Who computes next: one at a time, since each computation takes all of the device."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Turns:
    """A lock that is handed over in order. Of those who wait, ``urgent`` ones have every other turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[bool, deque[threading.Lock]] = {True: deque(), False: deque()}
        self._taken = False
        self._last = False
        """Whether the last turn was an urgent one."""

    @contextmanager
    def take(self, urgent: bool = False) -> Iterator[None]:
        """Wait for a turn and have it, without gradients."""
        self._enter(urgent)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._leave()

    def _enter(self, urgent: bool) -> None:
        gate = threading.Lock()
        with self._lock:
            if not self._taken:
                self._taken, self._last = True, urgent
                return
            gate.acquire()
            self._queues[urgent].append(gate)
        gate.acquire()

    def _leave(self) -> None:
        with self._lock:
            preferred = not self._last
            urgent = preferred if self._queues[preferred] else not preferred
            self._taken = bool(self._queues[urgent])
            if self._taken:
                self._last = urgent
                self._queues[urgent].popleft().release()
