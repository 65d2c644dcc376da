"""Who speaks next: of many requests on a few threads, the one whose listener would run dry first."""

from __future__ import annotations

import threading
import time
from collections import deque

from quintet_common.errors import ApiError
from quintet_common.worker.host import Emit

from quintet_tts.speech.speaking import Speaking


class Task:
    """One request on its way through the engine."""

    def __init__(self, request_id: int, speaking: Speaking, emit: Emit) -> None:
        self.id = request_id
        self.speaking = speaking
        self.emit = emit
        self.arrived = time.monotonic()
        self.seconds = 0.0
        """Of sound, emitted so far."""
        self.started = False
        self.postponed = 0.0
        """Seconds by which it lets others go first while it is being prepared."""
        self.cancelled = False
        self.held_since: float | None = None
        """When its client stopped reading; None while it reads."""

    def lead(self, now: float) -> float:
        """Seconds by which the sound is ahead of a listener who began when the request came."""
        return self.seconds + self.postponed - (now - self.arrived)


class Schedule:
    """Tasks between two steps. Threads ``take`` one, step it, and ``give_back`` or ``end`` it.

    At most ``streams`` run at a time, so that encoders and sentences of a bounded number are in memory; ``max_waiting``
    more queue in order. A short request need not wait for the end of a long one: each step is one sentence, and the
    smallest lead goes first. One whose client does not read rests: it gives its place to the next, and comes back as
    the first of the queue.
    """

    def __init__(self, streams: int, max_waiting: int) -> None:
        self._streams = streams
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._tasks: dict[int, Task] = {}
        self._waiting: deque[Task] = deque()
        self._ready: list[Task] = []
        self._resting: list[Task] = []

    def add(self, task: Task) -> None:
        """Raises ApiError 429 when the queue is full."""
        with self._changed:
            if len(self._waiting) + len(self._resting) >= self._max_waiting:
                raise ApiError(
                    429,
                    f"The model has {self._max_waiting} requests waiting already. Try again in a moment.",
                    code="queue_full",
                    retry_after=1,
                )
            self._tasks[task.id] = task
            self._waiting.append(task)
            self._admit()
            self._changed.notify()

    def take(self) -> Task:
        """The next task to step; waits for one."""
        with self._changed:
            while not self._ready:
                self._changed.wait()
            now = time.monotonic()
            task = min(self._ready, key=lambda each: each.lead(now))
            self._ready.remove(task)
            return task

    def give_back(self, task: Task) -> bool:
        """The task can be stepped again; False when it was cancelled meanwhile, and is to be ended."""
        with self._changed:
            if task.cancelled:
                return False
            if task.held_since is None:
                self._ready.append(task)
                self._changed.notify()
            else:
                self._resting.append(task)
                self._admit()
            return True

    def hold(self, request_id: int, held: bool) -> None:
        """Let a task rest from its next step on, or go on."""
        with self._changed:
            task = self._tasks.get(request_id)
            if task is None:
                return
            task.held_since = time.monotonic() if held else None
            if held and task in self._ready:
                self._ready.remove(task)
                self._resting.append(task)
            elif not held and task in self._resting:
                self._resting.remove(task)
                self._waiting.appendleft(task)
            self._admit()

    def abandoned(self, seconds: float) -> list[Task]:
        """Those that have rested for longer than ``seconds``. They are cancelled, and are to be ended."""
        before = time.monotonic() - seconds
        with self._changed:
            found = [task for task in self._resting if (task.held_since or before) < before]
            for task in found:
                task.cancelled = True
                self._resting.remove(task)
            return found

    def end(self, task: Task) -> None:
        with self._changed:
            self._tasks.pop(task.id, None)
            self._admit()

    def cancel(self, request_id: int) -> Task | None:
        """The task if it may be ended at once; None if it is unknown or its thread, told to stop, will see to it."""
        with self._changed:
            task = self._tasks.get(request_id)
            if task is None or task.cancelled:
                return None
            task.cancelled = True
            for place in (self._waiting, self._ready, self._resting):
                if task in place:
                    place.remove(task)
                    return task
            task.speaking.stop()
            return None

    def counts(self) -> tuple[int, int]:
        """Requests running and waiting."""
        with self._changed:
            return self._running, len(self._waiting) + len(self._resting)

    @property
    def _running(self) -> int:
        return len(self._tasks) - len(self._waiting) - len(self._resting)

    def _admit(self) -> None:
        while self._waiting and self._running < self._streams:
            self._ready.append(self._waiting.popleft())
            self._changed.notify()
