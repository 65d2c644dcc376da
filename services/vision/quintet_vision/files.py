"""Pictures that are handed out by URL: kept in memory for a while, under names that cannot be guessed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    data: bytes
    media_type: str
    expires: float
    """On the monotonic clock, seconds."""


class FileStore:
    """At most ``max_bytes`` of files, each for ``seconds``; when room is short the oldest go first."""

    def __init__(self, max_bytes: int = 128 << 20, seconds: float = 3600) -> None:
        self._max_bytes = max_bytes
        self.seconds = seconds
        self._files: OrderedDict[str, File] = OrderedDict()
        self.bytes = 0
        """Of all files."""

    def put(self, data: bytes, form: str) -> str:
        """Keep a file of format ``form`` (png, jpeg, webp) and return its name."""
        name = f"{secrets.token_urlsafe(24)}.{form}"
        self._files[name] = File(data, f"image/{form}", time.monotonic() + self.seconds)
        self.bytes += len(data)
        self._make_room()
        with contextlib.suppress(RuntimeError):  # without a loop, the next call forgets it
            asyncio.get_running_loop().call_later(self.seconds, self._make_room)
        return name

    def get(self, name: str) -> File | None:
        """The file, or None when there is none of this name, or no longer."""
        self._make_room()
        return self._files.get(name)

    def _make_room(self) -> None:
        """Files were put in the order in which they expire."""
        now = time.monotonic()
        while self._files:
            oldest = next(iter(self._files.values()))
            if oldest.expires > now and (self.bytes <= self._max_bytes or len(self._files) == 1):
                return
            self._files.popitem(last=False)
            self.bytes -= len(oldest.data)
