"""What a service writes: all of it goes to a file, what matters to a person goes to the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TextIO

LINE_LIMIT = 1 << 20
"""Bytes of the longest line that is read whole."""

_LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) +(\S+) +(.*)")


def default_log_folder(port: int) -> Path:
    """Where the logs of the endpoint on ``port`` go: ``~/.cache/quintet/logs/PORT``."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "quintet" / "logs" / str(port)


def keep_last_run(folder: Path, names: Iterable[str]) -> None:
    """What the run before this one has left in the logs of these services is ``NAME.log.1`` from now on: it may say
    what ended it. What leads elsewhere, a device for one, stays as it is."""
    for name in names:
        path = folder / f"{name}.log"
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # then the file is written on
                path.replace(f"{path}.1")


class ServiceLog:
    """The output of one service. Lines of at least ``level`` are said to the terminal, named after the service."""

    def __init__(self, name: str, folder: Path | None, level: str, say: Callable[[str], None]) -> None:
        self._name = name
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._say = say
        self._file: TextIO | None = None
        self.path: Path | None = None
        self.last_line = ""
        self.last_was_said = False
        if folder is not None:
            self.path = folder / f"{name}.log"
            try:
                # One that is retired may still write there: neither must write over what the other wrote.
                self._file = self.path.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                self._say(f"No log of {name} is kept: {self.path}: {error.strerror}.")

    async def follow(self, pipe: int) -> None:
        """Read a pipe to its end, and close it."""
        stream = asyncio.StreamReader(limit=LINE_LIMIT)
        protocol = asyncio.StreamReaderProtocol(stream)
        file = os.fdopen(pipe, "rb", 0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
        try:
            await self._read(stream)
        finally:
            transport.close()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than the limit: the reader has dropped it
                continue
            if not line:
                return
            self._take(line.decode("utf-8", "replace").rstrip())

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what could not be written before is tried once more
                file.close()

    def _keep(self, line: str) -> None:
        """Into the file, with the time. A disk that is full must not end what is said to the terminal."""
        if self._file is None:
            return
        try:
            self._file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")
        except OSError as error:
            self._say(f"The log of {self._name} ends here: {self.path}: {error.strerror}.")
            self.close()

    def _take(self, line: str) -> None:
        self._keep(line)
        found = _LEVEL.match(line)
        said = found is not None and logging.getLevelNamesMapping()[found[1]] >= self._level
        if line.strip():
            self.last_line, self.last_was_said = line.strip(), said
        if found and said:
            self._say(f"{self._name}: {found[3]}")
