"""Which sequences run in the next step. One thread owns it, the model and the cache.

A step is at most one prefill (a batch of short prompts, or a piece of a long one) and one token for every running
sequence, so that newcomers start at once and nobody waits for a long prompt. Running sequence i has slot i.

What a text begins with is copied from the prefix cache where it is known, and computed where not; a prompt whose
beginning is just being computed for another waits for that. A sequence is given memory for the tokens it has, not for
those it may come to have. When memory is full the youngest gives its slot up and is computed again later (in part: the
prefix cache may still have it); reserving would leave most of the memory unused, since answers end early.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter, deque

import torch
from quintet_common.errors import ApiError
from quintet_common.memory import give_back

from quintet_chat.engine.admission import Admission, Newcomer, Partial
from quintet_chat.engine.looker import Looker
from quintet_chat.engine.output import Ended, Item, Output, Reason, Sampled
from quintet_chat.engine.pictures import Picture
from quintet_chat.engine.prefix import Room
from quintet_chat.engine.request import Request, Sequence
from quintet_chat.engine.runner import Piece, Runner
from quintet_chat.engine.sampler import Choice, sample
from quintet_chat.engine.snapshots import prefix_cache

log = logging.getLogger("quintet.chat")

COUNTERS = (
    *("prefill_steps", "prefill_tokens", "decode_steps", "decode_tokens", "preemptions"),
    *("prefix_cache_queries", "prefix_cache_hits"),
)
LOOK_SECONDS = 0.02
"""How long a picture is waited for, when nothing runs, before the queue is looked at again."""

IDLE_SECONDS = 5.0
"""After so long without work the cache's memory goes back."""


class Scheduler:
    """``chunk`` is how many prompt tokens one step may compute, ``prefixes`` how much is kept of texts seen."""

    def __init__(self, runner: Runner, output: Output, max_batch: int, chunk: int, prefixes: Room) -> None:
        self.max_batch = max_batch
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        """Steps and tokens since the start, by metric name."""
        self._runner = runner
        self._slots = runner.slots
        self._prefixes = prefix_cache(runner.slots, prefixes)
        self._admission = Admission(runner.slots, self._prefixes, max_batch, chunk)
        self._looker = Looker(runner)
        self._output = output
        self._chunk = chunk
        self._inbox: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._partial: Partial | None = None
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
        """The share of the cache's cells in use, 0 to 1."""
        return self._slots.usage(sum(sequence.cached for sequence in self.active))

    # The model thread

    def run(self) -> None:
        """Step until closed."""
        while not self._closed:
            self._wake.clear()
            while not self._closed and self.step():
                pass
            # Closed before the line above: that took the wake-up away.
            if not self._closed and not self._wake.wait(IDLE_SECONDS):
                self._slots.rest()
                give_back()
                self._wake.wait()
        self._looker.close()

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
        # Asked once: who leaves while this runs is dropped and ended together at the next step.
        gone = dict.fromkeys(sequence for sequence in (*self.active, *self._waiting) if sequence.gone)
        if not gone:
            return
        if self._partial and self._partial.sequence in gone:
            self._give_up(self._partial)
        for sequence in gone:
            if sequence in self._running:
                self._free(sequence)
        self._waiting = deque(sequence for sequence in self._waiting if sequence not in gone)
        ended: dict[Request, None] = dict.fromkeys(s.request for s in gone if s.request.cancelled)
        self._output.put([Ended(request) for request in ended])

    def _free(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch; the last slot moves into its place, so that the slots stay dense."""
        row, last = self._running.index(sequence), len(self._running) - 1
        self._prefixes.snapshot(row, sequence.text[: sequence.cached])
        self._slots.free(row)
        if row != last:
            self._slots.move(last, row, self._running[last].cached)
            self._slots.free(last)
            self._running[row] = self._running[last]
        self._running.pop()
        sequence.cached = 0

    def _give_up(self, partial: Partial) -> None:
        """Take the slot of a half-computed prompt away. What was computed is known when it comes again."""
        self._prefixes.snapshot(partial.row, partial.sequence.text[: partial.done])
        self._slots.free(partial.row)
        self._partial = None

    # Prefill

    def _prefill(self) -> None:
        if self._partial and not (self._newcomers_turn and self._waiting):
            self._newcomers_turn = True
            self._extend(self._partial)
            return
        self._newcomers_turn = False
        batch = self._admission.take(self._waiting, self._running, self._partial)
        for newcomer in batch:
            self._count_start(newcomer)
        if not batch:
            if self._partial:
                self._extend(self._partial)
            return
        if batch[0].is_long(self._chunk):
            row = len(self._running)
            self._partial = Partial(batch[0].sequence, row, self._prefixes.load(row, batch[0].beginning))
            self._newcomers_turn = True
            self._extend(self._partial)
            return
        self._clear_way(len(batch))
        first = len(self._running)
        known = [self._prefixes.load(row, newcomer.beginning) for row, newcomer in enumerate(batch, first)]
        logits = self._compute(first, [newcomer.sequence for newcomer in batch], known)
        self.counters["prefill_steps"] += 1
        self._start([newcomer.sequence for newcomer in batch], logits)

    def _compute(self, first: int, batch: list[Sequence], starts: list[int], end: int | None = None) -> torch.Tensor:
        """Prefill the tokens from ``starts`` on of the slots from ``first`` on, all or those before ``end``."""
        if any(sequence.cuts for sequence in batch):
            rows = enumerate(zip(batch, starts, strict=True), first)
            return torch.cat([self._compute_in_parts(row, each, start, end) for row, (each, start) in rows])
        starting = zip(batch, starts, strict=True)
        pieces = [Piece(start, each.context[start:end], each.request.pictures) for each, start in starting]
        return self._runner.prefill(first, pieces)

    def _compute_in_parts(self, row: int, sequence: Sequence, start: int, end: int | None) -> torch.Tensor:
        """The same for one, keeping what there is at its cuts on the way."""
        end = min(end or sequence.length, sequence.length)
        pictures = sequence.request.pictures
        for cut in [cut for cut in sequence.cuts if start < cut <= end]:
            if pictures is None or pictures.end_of_piece(start, cut) == cut:
                logits = self._runner.prefill(row, [Piece(start, sequence.context[start:cut], pictures)])
                self._prefixes.snapshot(row, sequence.text[:cut])
                start = cut
        if start < end:
            logits = self._runner.prefill(row, [Piece(start, sequence.context[start:end], pictures)])
        return logits

    def _count_start(self, newcomer: Newcomer) -> None:
        sequence = newcomer.sequence
        if not sequence.tokens:
            self.counters["prefix_cache_queries"] += sequence.length
            self.counters["prefix_cache_hits"] += newcomer.known
            self.counters["prefill_tokens"] += sequence.length - newcomer.known
        sequence.request.start(newcomer.known)

    def _clear_way(self, newcomers: int) -> None:
        """Move a half-computed prompt out of the slots right behind the running ones."""
        free = len(self._running) + newcomers
        if self._partial and self._partial.row < free:
            self._slots.move(self._partial.row, free, self._partial.done)
            self._partial = self._partial._replace(row=free)

    def _extend(self, partial: Partial) -> None:
        sequence, row, done = partial
        pictures, end = sequence.request.pictures, done + self._chunk
        end = pictures.end_of_piece(done, end) if pictures else end
        if pictures is not None and (picture := pictures.unseen(done, end)):
            self._look(sequence, picture)
            return
        logits = self._compute(row, [sequence], [done], end)
        self.counters["prefill_steps"] += 1
        done = min(end, sequence.length)
        sequence.cached = done
        if pictures is not None:
            pictures.forget(done)
        if done < sequence.length:
            self._partial = Partial(sequence, row, done)
            self._prefixes.on_the_way(row, sequence.text, partial.done, done)
            return
        if row != len(self._running):
            self._slots.move(row, len(self._running), done)
            self._slots.free(row)
        self._partial = None
        self._start([sequence], logits)

    def _look(self, sequence: Sequence, picture: Picture) -> None:
        """Look at a picture of the half-computed prompt; one that cannot be looked at costs its own request alone."""
        try:
            self._looker.look(picture, 0 if self._running else LOOK_SECONDS)
        except RuntimeError:
            log.exception("looking at a picture failed")
            assert self._partial is not None
            self._give_up(self._partial)
            sequence.request.cancelled = True
            failure = ApiError(500, "The model failed on a picture; the service's log has the details.")
            self._output.put([Ended(sequence.request, failure)])

    def _start(self, batch: list[Sequence], logits: torch.Tensor) -> None:
        """Let sequences whose prompts are in the next free slots run: sample their first tokens."""
        sources = list(range(len(batch)))
        for sequence in batch:
            sequence.cached = sequence.length
            self._prefixes.save(len(self._running), sequence.text)
            self._running.append(sequence)
        for source, leader in enumerate(list(batch)):
            for sibling in self._fork(leader):
                batch.append(sibling)
                sources.append(source)
        if len(sources) > len(logits):
            logits = logits[sources]
        self._finish_step(batch, sample(logits, batch))

    def _fork(self, leader: Sequence) -> list[Sequence]:
        """The further choices of a request (``n``) begin with a copy of the first one's slot, or queue."""
        request = leader.request
        if leader.index or leader.tokens:
            return []
        started = []
        for sibling in request.sequences[1:]:
            if not self._admission.fits_copy(sibling, self._running, self._partial):
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
        tokens, positions = [s.tokens[-1] for s in batch], [s.cached for s in batch]
        logits = self._runner.decode(tokens, positions, [s.shift for s in batch])
        for sequence in batch:
            sequence.cached += 1
        self.counters["decode_steps"] += 1
        self._finish_step(batch, sample(logits, batch))

    def _make_room(self) -> None:
        """One more token for every running sequence; when they do not fit, the youngest go back to the queue."""
        while self._running and not self._admission.reserve([s.cached + 1 for s in self._running], self._partial):
            youngest = max(self.active, key=lambda sequence: sequence.request.arrived)
            if self._partial and youngest is self._partial.sequence:
                self._give_up(self._partial)
                youngest.cached = 0
            else:
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
    return [Sequence(request, index, compiled and compiled.matcher()) for index in range(request.body.n)]
