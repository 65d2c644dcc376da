"""Notice that a file has changed, without help of the operating system: it works on every mount."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

INTERVAL = 0.5
"""Seconds between two looks."""


async def changes(file: Path) -> AsyncIterator[None]:
    """Yield after each change of ``file``, once it stays as it is: half of a file may be one of fewer models, and those
    that it lacks would be unloaded. A file that is gone for a moment (an editor saves) is waited for."""
    taken = before = _stamp(file)
    while True:
        await asyncio.sleep(INTERVAL)
        now = _stamp(file)
        if now is not None and now == before and now != taken:
            taken = now
            yield
        before = now


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
