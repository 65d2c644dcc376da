"""Which sequences run in the next step. One thread owns it, the model and the cache.

A step is at most one prefill (a batch of short prompts, or a piece of a long one) and one token for every running
sequence, so that newcomers start at once and nobody waits for a long prompt. Running sequence i has slot i. When the
cache is full the youngest sequence gives its slot up and is computed again later.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from typing import NamedTuple

import torch
from quintet_common.memory import give_back

from quintet_chat.engine.grammar import Matcher
from quintet_chat.engine.output import Ended, Item, Output, Reason, Sampled
from quintet_chat.engine.request import Request, Sequence
from quintet_chat.engine.runner import Runner
from quintet_chat.engine.sampler import Choice, sample

HEADROOM = 32
"""Tokens a new sequence must have room for beyond its prompt, lest it be evicted at once."""

IDLE_SECONDS = 5.0
"""After so long without work the cache's memory goes back."""


class _Partial(NamedTuple):
    """A long prompt whose first ``done`` tokens are in slot ``row``."""

    sequence: Sequence
    row: int
    done: int


class Scheduler:
    """``chunk`` is how many prompt tokens one step may compute."""

    def __init__(self, runner: Runner, output: Output, max_batch: int, chunk: int) -> None:
        self.max_batch = max_batch
        self.counters: Counter[str] = Counter()
        """Steps and tokens since the start, by metric name."""
        self._runner = runner
        self._slots = runner.slots
        self._output = output
        self._chunk = chunk
        self._inbox: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._partial: _Partial | None = None
        self._newcomers_turn = True
        self._closed = False

    # Any thread

    def add(self, request: Request) -> None:
        """Queue a prepared request."""
        self._inbox.put(request)
        self._wake.set()

    def wake(self) -> None:
        """Look again soon: a request was cancelled."""
        self._wake.set()

    def close(self) -> None:
        """Make ``run`` return after the step that is under way."""
        self._closed = True
        self._wake.set()

    @property
    def active(self) -> list[Sequence]:
        """The sequences that have a slot now."""
        partial = self._partial
        return [*self._running, *([partial.sequence] if partial else [])]

    @property
    def usage(self) -> float:
        """The share of the cache's cells that hold tokens, 0 to 1."""
        return sum(sequence.cached for sequence in self.active) / self._slots.cells

    # The model thread

    def run(self) -> None:
        """Step until closed."""
        while not self._closed:
            self._wake.clear()
            while not self._closed and self.step():
                pass
            if not self._wake.wait(IDLE_SECONDS):
                self._slots.release()
                give_back()
                self._wake.wait()

    @torch.inference_mode()
    def step(self) -> bool:
        """One step; False when there was nothing to do."""
        self._take_in()
        self._drop_gone()
        if not (self._waiting or self._running or self._partial):
            return False
        self._prefill()
        self._decode()
        return True

    def _take_in(self) -> None:
        while True:
            try:
                request = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._waiting.append(request.sequences[0])

    def _drop_gone(self) -> None:
        """Free the slots of what was cancelled or stopped, and end the cancelled requests."""
        gone = [sequence for sequence in (*self.active, *self._waiting) if sequence.gone]
        if not gone:
            return
        if self._partial and self._partial.sequence.gone:
            self._partial = None
        for sequence in gone:
            if sequence in self._running:
                self._free(sequence)
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.gone)
        ended: dict[Request, None] = dict.fromkeys(s.request for s in gone if s.request.cancelled)
        self._output.put([Ended(request) for request in ended])

    def _free(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch; the last slot moves into its place, so that the slots stay dense."""
        row, last = self._running.index(sequence), len(self._running) - 1
        if row != last:
            self._slots.copy(last, row, self._running[last].cached)
            self._running[row] = self._running[last]
        self._running.pop()
        sequence.cached = 0

    # Prefill

    def _prefill(self) -> None:
        if self._partial and not (self._newcomers_turn and self._waiting):
            self._newcomers_turn = True
            self._extend(self._partial)
            return
        self._newcomers_turn = False
        batch = self._admit()
        if not batch:
            if self._partial:
                self._extend(self._partial)
            return
        if batch[0].length > self._chunk:
            row = len(self._running)
            self._partial = _Partial(batch[0], row, 0)
            self._newcomers_turn = True
            self._extend(self._partial)
            return
        self._clear_way(len(batch))
        logits = self._runner.prefill(len(self._running), [sequence.context for sequence in batch])
        self.counters["prefill_steps"] += 1
        self._start(batch, logits)

    def _admit(self) -> list[Sequence]:
        """Take from the queue, in order, what one prefill can compute and the cache can hold."""
        batch: list[Sequence] = []
        longest = 0
        while self._waiting:
            length = self._waiting[0].length
            is_long = length > self._chunk
            if is_long and (batch or self._partial):
                break
            if batch and (len(batch) + 1) * max(longest, length) > self._chunk:
                break
            if not self._room_for(len(batch) + 1, max(longest, length)):
                break
            batch.append(self._waiting.popleft())
            batch[-1].request.start()
            longest = max(longest, length)
            if is_long:
                break
        return batch

    def _room_for(self, newcomers: int, length: int) -> bool:
        """Reserve slots for so many newcomers beside those that run."""
        rows = len(self.active) + newcomers
        if rows > self.max_batch:
            return False
        needed = max(self._used_length + 1, length + (0 if rows == 1 else HEADROOM))
        return self._slots.reserve(max(rows, self._used_rows), needed, self._used_rows, self._used_length)

    @property
    def _used_rows(self) -> int:
        return max(len(self._running), self._partial.row + 1 if self._partial else 0)

    @property
    def _used_length(self) -> int:
        """Tokens per slot that must be kept; of a half-computed prompt, those still to come too."""
        coming = self._partial.sequence.length if self._partial else 0
        return max([coming, *(sequence.cached for sequence in self._running)])

    def _clear_way(self, newcomers: int) -> None:
        """Move a half-computed prompt out of the slots right behind the running ones."""
        free = len(self._running) + newcomers
        if self._partial and self._partial.row < free:
            self._slots.copy(self._partial.row, free, self._partial.done)
            self._partial = self._partial._replace(row=free)

    def _extend(self, partial: _Partial) -> None:
        sequence, row, done = partial
        tokens = sequence.context[done : done + self._chunk]
        logits = self._runner.extend(row, done, tokens) if done else self._runner.prefill(row, [tokens])
        self.counters["prefill_steps"] += 1
        done += len(tokens)
        sequence.cached = done
        if done < sequence.length:
            self._partial = _Partial(sequence, row, done)
            return
        if row != len(self._running):
            self._slots.copy(row, len(self._running), done)
        self._partial = None
        self._start([sequence], logits)

    def _start(self, batch: list[Sequence], logits: torch.Tensor) -> None:
        """Let sequences whose prompts are in the next free slots run: sample their first tokens."""
        sources = list(range(len(batch)))
        for sequence in batch:
            sequence.cached = sequence.length
            self.counters["prefill_tokens"] += 0 if sequence.tokens else sequence.length
            self._running.append(sequence)
        for source, leader in enumerate(list(batch)):
            for sibling in self._fork(leader):
                batch.append(sibling)
                sources.append(source)
        if len(sources) > len(logits):
            logits = logits[sources]
        self._finish_step(batch, sample(logits, batch))

    def _fork(self, leader: Sequence) -> list[Sequence]:
        """The further choices of a request (``n``) begin with a copy of the first one's slot, or queue for one."""
        request = leader.request
        if leader.index or leader.tokens:
            return []
        started = []
        for sibling in request.sequences[1:]:
            if not self._room_for(1, leader.cached):
                self._waiting.appendleft(sibling)
                continue
            self._clear_way(1)
            self._slots.copy(self._running.index(leader), len(self._running), leader.cached)
            sibling.cached = leader.cached
            self._running.append(sibling)
            started.append(sibling)
        return started

    # Decode

    def _decode(self) -> None:
        self._make_room()
        batch = list(self._running)
        if not batch:
            return
        logits = self._runner.decode([s.tokens[-1] for s in batch], [s.cached for s in batch])
        for sequence in batch:
            sequence.cached += 1
        self.counters["decode_steps"] += 1
        self._finish_step(batch, sample(logits, batch))

    def _make_room(self) -> None:
        """One more token for every running sequence; when they do not fit, the youngest go back to the queue."""
        while self._running and not self._slots.reserve(
            self._used_rows, self._used_length + 1, self._used_rows, self._used_length
        ):
            youngest = max(self._running, key=lambda sequence: sequence.request.arrived)
            self._free(youngest)
            self._waiting.appendleft(youngest)
            self.counters["preemptions"] += 1

    def _finish_step(self, batch: list[Sequence], choices: list[Choice]) -> None:
        items: list[Item] = []
        for sequence, choice in zip(batch, choices, strict=True):
            sequence.tokens.append(choice.token)
            sequence.counts[choice.token] += 1
            reason = _reason(sequence, choice.token)
            if reason is not None:
                self._free(sequence)
            items.append(Sampled(sequence, choice, reason))
        self.counters["decode_tokens"] += len(batch)
        self._output.put(items)


def _reason(sequence: Sequence, token: int) -> Reason | None:
    """Why a sequence ends with this token, if it does. Stop strings are found by the output thread."""
    if token in sequence.request.stop_ids or (sequence.matcher is not None and sequence.matcher.finished):
        return "stop"
    return "length" if len(sequence.tokens) >= sequence.request.max_tokens else None


def sequences_of(request: Request) -> list[Sequence]:
    """The request's choices, each with a grammar matcher of its own."""
    compiled = request.grammar
    return [Sequence(request, index, compiled and Matcher(compiled)) for index in range(request.body.n)]
