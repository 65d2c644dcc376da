"""Where a grammar begins in the answer of a model that thinks first: behind the tag that ends its thinking."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple, Protocol

import numpy as np
import torch

from quintet_chat.tools.scan import overlap


class Gate(NamedTuple):
    """The tags of a model's thinking, as tokens see them. Rows are bitmasks over the vocabulary."""

    opening: str
    steps: list[frozenset[int]]
    """The tokens that go on with ``opening`` after so many of its characters, and no further than its end."""
    closing: str
    pieces: list[str]
    """The text of each token, bytes as Latin-1."""
    free: torch.Tensor
    """All tokens but those that end the answer."""
    careful: torch.Tensor
    """Of these, the ones that may complete the closing tag: no text follows it inside the token."""
    breaks: torch.Tensor
    """Line breaks alone, which models write between their thinking and their answer."""


def make_gate(vocabulary: list[bytes], stop_ids: list[int], tags: tuple[str, str]) -> Gate:
    pieces = [token.decode("latin-1") for token in vocabulary]
    opening, closing = (tag.encode().decode("latin-1") for tag in tags)
    free = np.array([bool(piece) for piece in pieces])
    free[[index for index in stop_ids if index < len(free)]] = False
    last = closing[-1]
    careful = free & np.array([not piece.partition(last)[2].strip() for piece in pieces])
    parts = [(index, piece) for index, piece in enumerate(pieces) if piece and piece in opening]
    return Gate(
        opening=opening,
        steps=[
            frozenset(index for index, piece in parts if opening.startswith(piece, place))
            for place in range(len(opening))
        ],
        closing=closing,
        pieces=pieces,
        free=as_row(free),
        careful=as_row(careful),
        breaks=as_row(np.array([bool(piece) and not piece.strip("\n") for piece in pieces])),
    )


def as_row(allowed: np.ndarray) -> torch.Tensor:
    """A row of a bitmask [vocabulary / 32] from booleans [vocabulary]."""
    padded = np.pad(allowed, (0, -len(allowed) % 32))
    return torch.from_numpy(np.packbits(padded, bitorder="little").view(np.int32).copy())


class Inner(Protocol):
    """The matcher of the grammar itself."""

    def fill(self, bitmask: torch.Tensor, row: int) -> None: ...

    def accept(self, token: int) -> None: ...

    @property
    def finished(self) -> bool: ...


class _Phase(Enum):
    BEFORE = auto()
    INSIDE = auto()
    BEHIND = auto()
    OVER = auto()


class GatedMatcher:
    """A matcher whose grammar holds from the end of the thinking on; ``inside``: the prompt has opened the thinking.

    A tag of several tokens can open it where the grammar does not allow the first of them.
    """

    def __init__(self, inner: Inner, gate: Gate, inside: bool) -> None:
        self._inner = inner
        self._gate = gate
        self._phase = _Phase.INSIDE if inside else _Phase.BEFORE
        self._tail = ""
        self._opened = 0
        """Characters of the opening tag that are there, while it is not whole."""
        self._ways: frozenset[int] = frozenset()
        """The tokens that go on with it."""

    def fill(self, bitmask: torch.Tensor, row: int) -> None:
        """Write into ``bitmask`` [rows, vocabulary / 32] which tokens may come next."""
        if self._phase is _Phase.INSIDE:
            allowed = self._gate.careful if overlap(self._tail, self._gate.closing) else self._gate.free
            bitmask[row] = 0
            bitmask[row, : len(allowed)] = allowed[: bitmask.shape[1]]
            return
        if self._opened:
            bitmask[row] = 0
        else:
            self._inner.fill(bitmask, row)
        if self._phase is _Phase.BEHIND:
            breaks = self._gate.breaks[: bitmask.shape[1]]
            bitmask[row, : len(breaks)] |= breaks
        elif self._phase is _Phase.BEFORE:
            self._ways = frozenset(token for token in self._gate.steps[self._opened] if self._let(bitmask[row], token))

    def accept(self, token: int) -> None:
        if self._phase is _Phase.INSIDE:
            self._think(token)
        elif self._phase is _Phase.BEFORE and token in self._ways:
            self._opened += len(self._gate.pieces[token])
            if self._opened == len(self._gate.opening):
                self._phase, self._opened = _Phase.INSIDE, 0
        elif self._phase is _Phase.BEHIND and not self._gate.pieces[token].strip("\n"):
            self._phase = _Phase.OVER
        else:
            self._phase = _Phase.OVER
            self._inner.accept(token)

    def _let(self, allowed: torch.Tensor, token: int) -> bool:
        """Allow a token of the opening tag; False where the grammar allows it too, unless it is the whole tag."""
        word, bit = divmod(token, 32)
        mask = int(np.uint32(1 << bit).view(np.int32))
        is_new = not int(allowed[word]) & mask
        allowed[word] |= mask
        return is_new or self._gate.pieces[token] == self._gate.opening

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, its stop token included."""
        return self._phase is _Phase.OVER and self._inner.finished

    def _think(self, token: int) -> None:
        self._tail += self._gate.pieces[token]
        if self._gate.closing in self._tail:
            self._phase = _Phase.BEHIND
        self._tail = self._tail[-len(self._gate.closing) :]
