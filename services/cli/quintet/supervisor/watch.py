"""Notice that models.yml has changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from quintet_common.changes import settled, stamp

INTERVAL = 0.5
"""Seconds between two looks."""


async def changes(file: Path) -> AsyncIterator[None]:
    """Yield after each change of ``file``, once it stays as it is: half of a file may be one of fewer models, and those
    that it lacks would be unloaded. A file that is gone for a moment (an editor saves) is waited for."""
    async for now in settled(lambda: stamp(file), stamp(file), INTERVAL):
        if now is not None:
            yield
