"""Who of those that wait is prefilled next: what one step can compute, and what memory there is for.

A prompt whose beginning is just being computed for another waits for that.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

from quintet_chat.engine.pictures import Text
from quintet_chat.engine.prefix import BLOCK, Beginning, PrefixCache
from quintet_chat.engine.request import Sequence
from quintet_chat.engine.slots import SlotCache

HEADROOM = 32
"""Tokens a new sequence must have room for beyond its prompt, lest it be evicted at once."""

LOOKAHEAD = 64
"""How many of the queue are looked at for one prefill, when those in front wait for another prompt."""


class Newcomer(NamedTuple):
    """A sequence to be prefilled behind what the prefix cache knows of it."""

    sequence: Sequence
    beginning: Beginning

    @property
    def known(self) -> int:
        return self.beginning.tokens

    def is_long(self, chunk: int) -> bool:
        """Whether it takes more than one step: for its length, or to look at pictures."""
        pictures = self.sequence.request.pictures
        looks = pictures is not None and pictures.unseen(self.known, self.sequence.length) is not None
        return looks or self.sequence.length - self.known > chunk


class Partial(NamedTuple):
    """A long prompt whose first ``done`` tokens are in slot ``row``."""

    sequence: Sequence
    row: int
    done: int


class Admission:
    """``chunk`` is how many prompt tokens one step may compute. For the model's thread."""

    def __init__(self, slots: SlotCache, prefixes: PrefixCache, max_batch: int, chunk: int) -> None:
        self._slots = slots
        self._prefixes = prefixes
        self._max_batch = max_batch
        self._chunk = chunk

    def take(self, waiting: deque[Sequence], running: list[Sequence], partial: Partial | None) -> list[Newcomer]:
        """Take from ``waiting``, in order, what one prefill can compute and the cache can hold."""
        batch: list[Newcomer] = []
        widest = 0
        for sequence in list(islice(waiting, LOOKAHEAD)):
            newcomer = Newcomer(sequence, self._prefixes.match(sequence.text))
            new = sequence.length - newcomer.known
            is_long = newcomer.is_long(self._chunk)
            if (is_long and partial) or self._follows(newcomer, batch, partial):
                continue
            if batch and (is_long or (len(batch) + 1) * max(widest, new) > self._chunk):
                break
            if not self.fits([*(member.sequence for member in batch), sequence], running, partial):
                break
            sequence.cuts = self._prefixes.cuts(sequence.length, newcomer.beginning)
            batch.append(newcomer)
            waiting.remove(sequence)
            widest = max(widest, new)
            if is_long:
                break
        if batch and not self._slots.resumable:
            # Those that wait tell where they part from what is about to be computed.
            for sequence in islice(waiting, LOOKAHEAD):
                self._follows(Newcomer(sequence, self._prefixes.match(sequence.text)), batch, partial)
        return batch

    def fits(self, newcomers: list[Sequence], running: list[Sequence], partial: Partial | None) -> bool:
        """Reserve slots for newcomers beside those that run, with a little room to go on."""
        if len(running) + (partial is not None) + len(newcomers) > self._max_batch:
            return False
        alone = len(newcomers) == 1 and not running and partial is None
        wanted = [min(s.length + HEADROOM, s.longest) if not alone else s.length for s in newcomers]
        return self.reserve([*(sequence.cached for sequence in running), *wanted], partial)

    def fits_copy(self, sibling: Sequence, running: list[Sequence], partial: Partial | None) -> bool:
        """The same for one that is to begin with a copy of a slot which holds all of its tokens."""
        if len(running) + (partial is not None) >= self._max_batch:
            return False
        wanted = min(sibling.length + HEADROOM, sibling.longest) - self._slots.shared(sibling.length)
        return self.reserve([*(sequence.cached for sequence in running), wanted], partial)

    def reserve(self, lengths: list[int], partial: Partial | None) -> bool:
        """Reserve slots of ``lengths`` from the first on, and one for a half-computed prompt, which is to be whole."""
        return self._slots.reserve(_with_partial(lengths, partial))

    def _follows(self, newcomer: Newcomer, batch: list[Newcomer], partial: Partial | None) -> bool:
        """Whether a prompt that is about to be computed will leave at least half of what this one would compute."""
        text, known = newcomer.sequence.text, newcomer.known
        leaders = [(member.sequence, member.known) for member in batch]
        leaders += [(partial.sequence, partial.done)] if partial else []
        for leader, done in leaders:
            shared = _shared(text, leader.text, known)
            if 2 * (shared - known) >= len(text) - known and self._prefixes.will_leave(leader.cuts, done, shared):
                return True
        return False


def _with_partial(lengths: list[int], partial: Partial | None) -> list[int]:
    """``lengths`` with that of the half-computed prompt."""
    if partial:
        lengths += [0] * (partial.row + 1 - len(lengths))
        # Where newcomers take its place it moves behind them.
        if lengths[partial.row]:
            lengths[partial.row] = max(lengths[partial.row], partial.done)
            lengths.append(partial.sequence.length)
        else:
            lengths[partial.row] = partial.sequence.length
    return lengths


def _shared(text: Text, other: Text, known: int) -> int:
    """How many tokens the two have in common from the beginning, in whole blocks, and ``known`` at least."""
    shared = known
    if text[:known] != other[:known]:
        return known
    while text[shared : shared + BLOCK] == other[shared : shared + BLOCK] and shared + BLOCK <= len(text):
        shared += BLOCK
    return shared
