"""How the texts of one turn are cut into batches: by length, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Sized(Protocol):
    """Something with a length in tokens. Items with different ``group`` cannot share a batch."""

    @property
    def length(self) -> int: ...

    @property
    def group(self) -> int: ...


ItemT = TypeVar("ItemT", bound=Sized)


def cut(items: Sequence[ItemT], budget: int, waste: int, max_items: int) -> list[list[ItemT]]:
    """``items`` sorted by length and cut into batches, the shortest first.

    A batch costs its longest length times its count, which stays within ``budget`` tokens unless one item alone is
    longer. It is also cut where its padding would exceed ``waste`` tokens: what one more forward pass costs.
    """
    batches: list[list[ItemT]] = []
    padding = 0
    for item in sorted(items, key=lambda item: (item.group, item.length)):
        if batches:
            batch = batches[-1]
            padding += (item.length - batch[-1].length) * len(batch)
            full = item.length * (len(batch) + 1) > budget or len(batch) == max_items
            if not full and padding <= waste and item.group == batch[-1].group:
                batch.append(item)
                continue
        batches.append([item])
        padding = 0
    return batches
