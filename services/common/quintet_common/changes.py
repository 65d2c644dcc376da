"""Notice that files have changed, without help of the operating system: it works on every mount."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

Stamp = tuple[int, int, int] | None
T = TypeVar("T")


def stamp(file: str | Path) -> Stamp:
    """Another one after ``file`` was changed, replaced, made or removed; None while it cannot be looked at."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


async def settled(look: Callable[[], T], taken: T, seconds: float) -> AsyncIterator[T]:
    """What ``look`` sees, each time that it is no longer what was ``taken`` last and two looks have seen the same.

    A file that is just being written changes from one look to the next, and half of it may be one that can be read.
    ``seconds`` are between two looks.
    """
    before = taken
    while True:
        await asyncio.sleep(seconds)
        now = look()
        if now == before and now != taken:
            taken = now
            yield now
        before = now
