"""The queue between the reader, the tokeniser and the model: bounded, and fair to every request.

Both threads take turns around the requests: a request of 2,048 texts gives up one text per round like a request of one,
so a single query waits for one turn of the model at most, not for the whole of the larger request.
"""

from __future__ import annotations

import threading
from collections import deque

from quintet_common.errors import ApiError

from quintet_embed.engine.job import Item, Job, Tokens

SLICE_TEXTS, SLICE_CHARACTERS = 64, 65_536
"""The most that the tokeniser takes from one request before the next one's turn: some 20 ms."""

MAX_CHARACTERS = 256 << 20
"""Characters that may wait in all, whatever the number of requests: a bound on memory."""


class FairQueue:
    """``max_waiting`` is the number of requests that may wait for the model before others are refused."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._jobs: dict[int, Job] = {}
        self._untokenised: deque[Job] = deque()
        self._ready: deque[Job] = deque()
        self._characters = 0

    def add(self, job: Job) -> None:
        """Raises ApiError 429 when too much waits already."""
        size = sum(job.characters)
        with self._changed:
            if self.waiting >= self._max_waiting or self._characters + size > MAX_CHARACTERS:
                raise ApiError(
                    429, "Too many requests wait for this model; try again.", code="queue_full", retry_after=1
                )
            self._jobs[job.id] = job
            self._untokenised.append(job)
            self._characters += size
            self._changed.notify_all()

    def close(self, job: Job) -> bool:
        """Take a job out, whatever its state. False when it was out already: its answer is someone else's."""
        with self._changed:
            return self._close(job)

    def cancel(self, job_id: int) -> Job | None:
        """Take a job out by its id; None when it has ended."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None:
                self._close(job)
            return job

    def next_slice(self) -> tuple[Job, int, int]:
        """Wait for texts to tokenise: a job and the range of its texts whose turn it is."""
        with self._changed:
            while True:
                while not self._untokenised:
                    self._changed.wait()
                job = self._untokenised.popleft()
                if job.open:
                    return job, job.tokenised, _slice_end(job)

    def put(self, job: Job, found: list[Tokens]) -> None:
        """Hand over what was made of a slice. The rest of the job goes to the end of the tokeniser's queue."""
        with self._changed:
            if not job.open:
                return
            if not job.ready:
                self._ready.append(job)
            job.accept(found)
            if job.tokenised < job.count:
                self._untokenised.append(job)
            self._changed.notify_all()

    def more(self, job: Job, done: int) -> None:
        """``done`` more texts of a job that the model does not see are tokenised; it gets another turn for the rest."""
        with self._changed:
            job.tokenised += done
            if job.open:
                self._untokenised.append(job)

    def next_turn(self, budget: int, max_items: int) -> list[Item]:
        """Wait for work, then take up to ``budget`` tokens of it: one text from each request in turn, longest first.

        There is no timer: what is queued now is the turn, and what comes while it runs is the next one.
        """
        with self._changed:
            while True:
                turn: list[Item] = []
                tokens = 0
                while self._ready and len(turn) < max_items:
                    job = self._ready[0]
                    if not job.open:
                        self._ready.popleft()
                        continue
                    tokens += job.ready[-1].length
                    if turn and tokens > budget:
                        break
                    turn.append(job.ready.pop())
                    self._ready.rotate(-1)
                    if not job.ready:
                        self._ready.pop()
                if turn:
                    return turn
                self._changed.wait()

    @property
    def waiting(self) -> int:
        """Requests of which the model has not begun any text."""
        with self._changed:
            return sum(job.queue_seconds is None for job in self._jobs.values())

    @property
    def running(self) -> int:
        with self._changed:
            return len(self._jobs) - self.waiting

    def _close(self, job: Job) -> bool:
        if not job.open:
            return False
        job.open = False
        job.ready.clear()
        self._jobs.pop(job.id, None)
        self._characters -= sum(job.characters)
        return True


def _slice_end(job: Job) -> int:
    """Where the slice that starts at the first untokenised text ends; it has at least one text."""
    end, characters = job.tokenised, 0
    while end < min(job.count, job.tokenised + SLICE_TEXTS):
        characters += job.characters[end]
        if end > job.tokenised and characters > SLICE_CHARACTERS:
            break
        end += 1
    return end
