"""How long the chat service takes from its start to the first text of an answer, with the converted weights in cache.

    python bench/chat/start.py [--times 5]

Nothing is pinned: the service and its worker start side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import peers
from load import drive, questions
from quintet_chat.backends import embedded
from run import cpu_seconds


def start(folder: Path) -> tuple[float, float]:
    """Seconds by the clock and of the processor until an answer of one token has come."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    server = peers.ours(folder, "embedded:smollm2-135m-instruct")
    command = [word.replace("PORT", str(port)) for word in server.command]
    begin = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        try:
            while not _answers(port, server) and started.poll() is None and time.monotonic() < begin + 120:
                time.sleep(0.05)
            return time.monotonic() - begin, cpu_seconds(started.pid)
        finally:
            started.terminate()


def _answers(port: int, server: peers.Server) -> bool:
    try:
        asyncio.run(drive(port, questions(1, 0), 1, {"model": server.model, **server.fields}))
    except (OSError, RuntimeError, ValueError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="starts (default: 5)")
    options = parser.parse_args()
    embedded.directory(embedded.SMOLLM2, lambda _fraction, _note: None)
    with tempfile.TemporaryDirectory() as folder:
        taken = [start(Path(folder)) for _ in range(options.times)]
    wall, cpu = zip(*taken, strict=True)
    print(f"{median(wall):.1f} s (at most {max(wall):.1f}) by the clock, {median(cpu):.1f} s of the processor")


if __name__ == "__main__":
    main()
