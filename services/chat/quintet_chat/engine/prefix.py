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

    def match(self, text: Sequence[Hashable]) -> list[int]:
        """The places of the blocks that ``text`` begins with. At least its last token is left to compute."""
        found = list(self._chain(text[: len(text) - 1]))
        for key, _ in reversed(found):
            self._known.move_to_end(key)
        return [block.place for _, block in found]

    def load(self, row: int, places: list[int]) -> int:
        """Copy blocks into the beginning of a slot; the number of tokens copied."""
        if not places:
            return 0
        count = len(places) * BLOCK
        for layer, stores in zip(self._slots.layers, self._stores, strict=True):
            layer.write(row, 0, [kept[places].flatten(0, 1) for kept in stores])
        return count

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
            self._stores = [[self._new(part) for part in layer] for layer in parts]
        for layer, stores in zip(parts, self._stores, strict=True):
            for part, kept in zip(layer, stores, strict=True):
                kept[places] = part.reshape(len(new), BLOCK, *part.shape[1:])

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self._known.clear()
        self._free = list(range(self._blocks - 1, -1, -1))
        self._stores = []

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
        return forgotten.place

    def _new(self, part: torch.Tensor) -> torch.Tensor:
        """Where blocks of what is like ``part`` [tokens, heads, head size] are kept."""
        shape = (self._blocks, BLOCK, *part.shape[1:])
        if part.device.type == "cpu":
            return Pages(shape, part.dtype).tensor
        return torch.empty(shape, dtype=part.dtype, device=part.device)
