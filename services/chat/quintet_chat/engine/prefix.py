"""The prefix cache: keys and values of what prompts begin with, kept by their tokens for the requests that follow.

Tokens are kept in blocks of 16. A block is known by the block before it and its own tokens, compared exactly, so a
chain of blocks is one beginning of a text and no two texts are taken for each other. Blocks are copied into a slot and
out of it: a copy costs a hundredth of computing them, slots stay plain rows, and any block can be forgotten any time.
What was not used for longest is forgotten first; a chain is touched from its end, so its end goes before its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import torch

from quintet_chat.engine.pages import Pages
from quintet_chat.engine.slots import SlotCache

BLOCK = 16
"""Tokens per block."""

SPAN = 512
"""Where states are kept, too, there is room for so many tokens for each time."""


class Room(NamedTuple):
    """How much a prefix cache keeps."""

    blocks: int
    snapshots: int = 0
    """Of the states of models that have some (snapshots.py)."""


def room_in(size: int, per_token: int, per_row: int) -> Room:
    """What ``size`` bytes hold, of a model with so many bytes of keys and values a token, and of states a slot."""
    block = BLOCK * per_token
    if not per_row:
        return Room(size // block)
    snapshot = per_row + block
    count = size // (snapshot + SPAN * per_token)
    return Room((size - count * snapshot) // block if count else 0, count)


class Beginning(NamedTuple):
    """What is known of a text."""

    places: list[int]
    """Of its blocks."""
    tokens: int
    """How many that are, with those of the snapshot."""
    snapshot: int | None = None
    """The place of the states behind them, in models that have some."""
    seen: int = 0
    """How many tokens it has in common with a text that was seen, whether there is a snapshot or not."""


class _Key(NamedTuple):
    before: int
    """The serial number of the block before, 0 for none. Serial numbers are never used twice."""
    tokens: tuple[Hashable, ...]


class _Block(NamedTuple):
    serial: int
    place: int
    """Where in the stores its keys and values are."""


class PrefixCache:
    """At most ``blocks`` blocks from the slots of ``slots``. For the model thread.

    Texts are given as what tells their tokens apart: token ids, or anything hashable where an id is not enough.
    """

    def __init__(self, slots: SlotCache, blocks: int) -> None:
        self._slots = slots
        self._blocks = blocks
        self._known: OrderedDict[_Key, _Block] = OrderedDict()
        """Least lately used first."""
        self._free = list(range(blocks - 1, -1, -1))
        self._serial = 0
        self._stores: list[list[torch.Tensor]] = []
        """For each layer its keys and values, [blocks, BLOCK, heads, head size]."""

    def __len__(self) -> int:
        return len(self._known)

    @property
    def usage(self) -> float:
        """The share of the blocks that hold something, 0 to 1."""
        return len(self._known) / self._blocks if self._blocks else 0.0

    def match(self, text: Sequence[Hashable]) -> Beginning:
        """What ``text`` begins with. At least its last token is left to compute."""
        found = self._touched(text[: len(text) - 1])
        tokens = len(found) * BLOCK
        return Beginning([block.place for block in found], tokens, seen=tokens)

    def load(self, row: int, beginning: Beginning) -> int:
        """Copy what is known into the beginning of a slot; the number of tokens copied."""
        if beginning.places:
            for layer, stores in zip(self._slots.layers, self._stores, strict=True):
                layer.write(row, 0, [kept[beginning.places].flatten(0, 1) for kept in stores])
        return beginning.tokens

    def cuts(self, length: int, beginning: Beginning) -> list[int]:  # noqa: ARG002
        """Behind which tokens of a text of this ``length`` a prefill stops for a ``snapshot``, in order."""
        return []

    def will_leave(self, cuts: list[int], done: int, shared: int) -> bool:  # noqa: ARG002
        """Whether a prompt of which ``done`` tokens are computed will leave its first ``shared`` ones to others.

        ``cuts`` are where it stops for a ``snapshot``; that others wait for it may add one.
        """
        return self._blocks > 0

    def snapshot(self, row: int, text: Sequence[Hashable]) -> None:
        """``save``, when slot ``row`` holds ``text`` and no more: whatever can go on behind its last token is kept."""
        self.save(row, text)

    def on_the_way(self, row: int, text: Sequence[Hashable], start: int, done: int) -> None:
        """Slot ``row`` holds the first ``done`` tokens of ``text``, those from ``start`` on computed just now."""

    def save(self, row: int, text: Sequence[Hashable]) -> None:
        """Keep the whole blocks of ``text``, whose keys and values slot ``row`` holds from its beginning on."""
        known = list(self._chain(text))
        new = self._add(text, known)
        if not new:
            return
        places = [block.place for _, block in new]
        first = len(known) * BLOCK
        parts = [layer.read(row, first, first + len(new) * BLOCK) for layer in self._slots.layers]
        if not self._stores:
            self._stores = [
                [storage(self._blocks, BLOCK, *part.shape[1:], like=part) for part in layer] for layer in parts
            ]
        for layer, stores in zip(parts, self._stores, strict=True):
            for part, kept in zip(layer, stores, strict=True):
                kept[places] = part.reshape(len(new), BLOCK, *part.shape[1:])

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self._known.clear()
        self._free = list(range(self._blocks - 1, -1, -1))
        self._stores = []

    def _touched(self, text: Sequence[Hashable]) -> list[_Block]:
        """The known blocks that ``text`` begins with, now used last, the first of them at last."""
        found = list(self._chain(text))
        for key, _ in reversed(found):
            self._known.move_to_end(key)
        return [block for _, block in found]

    def _chain(self, text: Sequence[Hashable]) -> Iterator[tuple[_Key, _Block]]:
        """The known blocks that ``text`` begins with."""
        before = 0
        for start in range(0, len(text) - BLOCK + 1, BLOCK):
            key = _Key(before, tuple(text[start : start + BLOCK]))
            block = self._known.get(key)
            if block is None:
                return
            yield key, block
            before = block.serial

    def _add(self, text: Sequence[Hashable], known: list[tuple[_Key, _Block]]) -> list[tuple[_Key, _Block]]:
        """Enter the blocks of ``text`` behind those that are known, as many as there is room for beside these."""
        for key, _ in reversed(known):
            self._known.move_to_end(key)
        wanted = min(len(text) // BLOCK, self._blocks) - len(known)
        new: list[tuple[_Key, _Block]] = []
        before = known[-1][1].serial if known else 0
        for start in range(len(known) * BLOCK, (len(known) + wanted) * BLOCK, BLOCK):
            self._serial += 1
            key = _Key(before, tuple(text[start : start + BLOCK]))
            new.append((key, _Block(self._serial, self._place())))
            before = self._serial
        # Entered from the end, so that the beginning counts as used last.
        for key, block in reversed(new):
            self._known[key] = block
        for key, _ in reversed(known):
            self._known.move_to_end(key)
        return new

    def _place(self) -> int:
        if self._free:
            return self._free.pop()
        _, forgotten = self._known.popitem(last=False)
        self._forgotten(forgotten.serial)
        return forgotten.place

    def _forgotten(self, serial: int) -> None:
        """Nothing: for those who keep something with a block."""


def storage(count: int, *shape: int, like: torch.Tensor) -> torch.Tensor:
    """Where ``count`` times something of this ``shape`` is kept, of the type of ``like`` and beside it."""
    if like.device.type == "cpu":
        return Pages((count, *shape), like.dtype).tensor
    return torch.empty((count, *shape), dtype=like.dtype, device=like.device)
