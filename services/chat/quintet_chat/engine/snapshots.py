"""The prefix cache of models with states: snapshots of slots, by the tokens that were computed when they were taken.

A state stands for all tokens so far, so a text can only be gone on with where its state was kept. Blocks of keys and
values are kept of all texts, as for other models (prefix.py); a snapshot is the states behind some of them, with the
keys and values of the tokens behind the last whole block. There is one

- when an answer ends or is evicted: the next turn of most conversations goes on there;
- a little before the end of each prompt: templates often end it with what is not there in the next turn, such as the
  mark that thinking begins, and drop the thoughts of earlier answers;
- where a prompt leaves what it has in common with one that was seen: system prompt and tools, mostly. So the second
  request with a beginning finds out where it ends, and the third goes on from there. Where such requests wait in the
  queue together it is known before the first is computed (admission.py);
- now and then within a long prompt: of two with one document the second goes on there. Of these are few (spares).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch

from quintet_chat.engine.prefix import BLOCK, Beginning, PrefixCache, Room, storage
from quintet_chat.engine.slots import SlotCache
from quintet_chat.engine.states import StateLayer

LEAST = 32
"""Tokens that a snapshot must save, over the one before it: a pass over fewer costs little more than a copy of it."""

MARGIN = 16
"""Tokens at the end of a prompt that the next turn may have others for."""


APART = 1024
"""Tokens between those within a prompt, at least."""

SPARE = 4
"""One in so many is within a prompt, at most: of most prompts only the end is gone on with."""


class _Key(NamedTuple):
    serial: int
    """Of the last whole block, 0 for none."""
    tail: tuple[Hashable, ...]
    """The tokens behind it."""


class _Snapshot(NamedTuple):
    place: int
    tokens: int


class Snapshots:
    """At most ``count`` of them. Blocks are given as the serial numbers of those that a text begins with, 0 first."""

    def __init__(self, slots: SlotCache, count: int) -> None:
        self._slots = slots
        self._count = count
        self._known: OrderedDict[_Key, int] = OrderedDict()
        """Their places, least lately used first."""
        self._spares: dict[_Key, None] = {}
        """Those of them that are within a prompt, in the order in which they were taken."""
        self._tails: dict[int, list[_Key]] = {}
        """By the serial numbers of blocks."""
        self._free = list(range(count - 1, -1, -1))
        self._stores: list[dict[Any, torch.Tensor]] = [{} for _ in slots.layers]
        """For each layer its states by their keys, or keys and values by number."""

    def __len__(self) -> int:
        return len(self._known)

    @property
    def spares(self) -> int:
        """How many may be within prompts."""
        return self._count // SPARE

    def find(self, blocks: list[int], text: Sequence[Hashable]) -> _Snapshot | None:
        """The longest that ``text`` begins with."""
        for depth in range(len(blocks) - 1, -1, -1):
            first = depth * BLOCK
            keys = self._tails.get(blocks[depth], [])
            fitting = [key for key in keys if tuple(text[first : first + len(key.tail)]) == key.tail]
            if fitting:
                key = max(fitting, key=lambda key: len(key.tail))
                self._known.move_to_end(key)
                return _Snapshot(self._known[key], first + len(key.tail))
        return None

    def load(self, row: int, snapshot: int, tokens: int) -> None:
        """Put what is kept in this place, of a text of so many ``tokens``, into a slot."""
        first = tokens // BLOCK * BLOCK
        for layer, stores in zip(self._slots.layers, self._stores, strict=True):
            if isinstance(layer, StateLayer):
                layer.put_back(row, {name: store[snapshot] for name, store in stores.items()})
            elif first < tokens:
                layer.write(row, first, [store[snapshot, : tokens - first] for store in stores.values()])

    def save(self, row: int, blocks: list[int], text: Sequence[Hashable], *, spare: bool = False) -> None:
        """Take one of slot ``row``, which holds ``text``: these whole blocks, and what is behind them."""
        first = len(text) // BLOCK * BLOCK
        key = _Key(blocks[-1], tuple(text[first:]))
        place = self._place(spare)
        self._known[key] = place
        if spare:
            self._spares[key] = None
        self._tails.setdefault(key.serial, []).append(key)
        for layer, stores in zip(self._slots.layers, self._stores, strict=True):
            if isinstance(layer, StateLayer):
                for name, state in layer.take(row).items():
                    if name not in stores:
                        stores[name] = storage(self._count, *state.shape, like=state)
                    stores[name][place] = state
            else:
                for number, part in enumerate(layer.read(row, first, len(text))):
                    if number not in stores:
                        stores[number] = storage(self._count, BLOCK, *part.shape[1:], like=part)
                    stores[number][place, : len(part)] = part

    def forget(self, serial: int) -> None:
        """Those behind a block that is no longer there."""
        for key in list(self._tails.get(serial, [])):
            self._free.append(self._drop(key))

    def _place(self, spare: bool) -> int:
        if spare and len(self._spares) >= self.spares:
            return self._drop(next(iter(self._spares)))
        return self._free.pop() if self._free else self._drop(next(iter(self._known)))

    def _drop(self, key: _Key) -> int:
        others = self._tails[key.serial]
        others.remove(key)
        if not others:
            del self._tails[key.serial]
        self._spares.pop(key, None)
        return self._known.pop(key)


class StatePrefixCache(PrefixCache):
    """A prefix cache of which texts begin where there is a snapshot."""

    def __init__(self, slots: SlotCache, room: Room) -> None:
        super().__init__(slots, room.blocks)
        self._snapshots = Snapshots(slots, room.snapshots)

    def match(self, text: Sequence[Hashable]) -> Beginning:
        text = text[: len(text) - 1]
        blocks = self._touched(text)
        seen = len(blocks) * BLOCK
        snapshot = self._snapshots.find([0, *(block.serial for block in blocks)], text)
        if snapshot is None:
            return Beginning([], 0, None, seen)
        places = [block.place for block in blocks[: snapshot.tokens // BLOCK]]
        return Beginning(places, snapshot.tokens, snapshot.place, seen)

    def load(self, row: int, beginning: Beginning) -> int:
        if beginning.snapshot is not None:
            self._snapshots.load(row, beginning.snapshot, beginning.tokens)
        return super().load(row, beginning)

    def cuts(self, length: int, beginning: Beginning) -> list[int]:
        found: list[int] = []
        for cut in sorted((beginning.seen, (length - MARGIN) // BLOCK * BLOCK)):
            if cut - (found[-1] if found else beginning.tokens) >= LEAST:
                found.append(cut)
        return found

    def will_leave(self, cuts: list[int], done: int, shared: int) -> bool:
        if not any(shared - LEAST < cut <= shared for cut in cuts):
            if shared < done + LEAST:
                return False
            cuts.append(shared)
            cuts.sort()
        return True

    def on_the_way(self, row: int, text: Sequence[Hashable], start: int, done: int) -> None:
        if self._snapshots.spares:
            apart = max(APART, -(-len(text) // self._snapshots.spares))
            if start // apart < done // apart:
                self.snapshot(row, text[:done], spare=True)

    def snapshot(self, row: int, text: Sequence[Hashable], *, spare: bool = False) -> None:
        self.save(row, text)
        blocks = [0, *(block.serial for _, block in self._chain(text))]
        known = self._snapshots.find(blocks, text)
        if len(blocks) - 1 == len(text) // BLOCK and len(text) - (known.tokens if known else 0) >= LEAST:
            self._snapshots.save(row, blocks, text, spare=spare)

    def _forgotten(self, serial: int) -> None:
        self._snapshots.forget(serial)


def prefix_cache(slots: SlotCache, room: Room) -> PrefixCache:
    """That of the model whose slots these are; it keeps nothing where there is no ``room``."""
    if slots.resumable or not room.snapshots:
        return PrefixCache(slots, room.blocks if slots.resumable else 0)
    return StatePrefixCache(slots, room)
