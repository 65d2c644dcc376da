"""A running ``quintet serve``, as the tests see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Served:
    """A running ``quintet serve`` with its output and the processes that it started."""

    def __init__(self, folder: Path, arguments: list[str], command: str = "quintet.main") -> None:
        self.folder = folder
        self.output = folder / "output"
        environment = os.environ | {
            "PYTHONPATH": str(folder / "standins"),
            "STANDIN_FOLDER": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        code = f"import {command} as m; m.main()"
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text()

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; the output was:\n{self.text()}"
            time.sleep(0.05)

    def until_said(self, words: str, times: int = 1) -> None:
        self.until(lambda: self.text().count(words) >= times)

    def starts(self, name: str) -> list[int]:
        """The process ids of each start of a service, or of its worker, as ``NAME-worker``."""
        lines = (self.folder / "starts").read_text().split("\n") if (self.folder / "starts").exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[:1] == [name]]

    def everything(self) -> list[int]:
        lines = (self.folder / "starts").read_text().splitlines()
        return [int(line.split()[1]) for line in lines]

    def stop(self, number: signal.Signals = signal.SIGINT, seconds: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet collected by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
