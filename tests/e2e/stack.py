"""The real thing for end-to-end tests: ``quintet serve`` in a process of its own, on the embedded models."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHAT, OCR, IMAGE, TTS, EMBEDDING = "smollm2-135m-instruct", "ppocr", "emoji-64", "hibari", "all-minilm-l6-v2"

START_SECONDS = 900
"""The first start converts the chat model; a machine that is busy takes its time."""


class Stack:
    """A running ``quintet serve``. ``url`` is the router's, without ``/v1``; ``output`` the file that it writes to."""

    def __init__(self, folder: Path, *arguments: str, config: Path = ROOT / "models.yml") -> None:
        self.output = folder / "output.txt"
        command = [
            str(Path(sys.executable).with_name("quintet")),
            "serve",
            str(config),
            "--port=0",
            f"--logs={folder}/logs",
        ]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.url = self._until_said(r"Quintet is up: (http://\S+)/v1")
        except BaseException:
            self.stop()
            raise

    def service_url(self, name: str) -> str:
        """Where one service listens: chat, multimodal, vision, tts or embed."""
        return "http://127.0.0.1:" + self._until_said(rf"^services .*\b{name} :(\d+)")

    def text(self) -> str:
        return self.output.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status after this signal. What hangs is killed, and shows in the status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _until_said(self, pattern: str) -> str:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if found := re.search(pattern, self.text(), re.MULTILINE):
                return found[1]
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"quintet serve did not come up; it said:\n{self.text()}")
            time.sleep(0.1)


def descendants(pid: int) -> dict[int, str]:
    """The processes that ``pid`` has started, and those have started, with their command lines."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found: dict[int, str] = {}
    todo = list(children.get(pid, []))
    while todo:
        each = todo.pop()
        todo += children.get(each, [])
        found[each] = command_of(each)
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def alive(pids: dict[int, str]) -> dict[int, str]:
    """Those that still are the process they were."""
    return {pid: command for pid, command in pids.items() if command and command_of(pid) == command}


def wait_gone(pids: dict[int, str], seconds: float) -> dict[int, str]:
    """Those of ``pids`` that are still there after at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
