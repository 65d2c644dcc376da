"""What the benchmarks need of processes: a port, a server that ends, and the CPU time of everything it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time that the tree's processes have used, ended threads and awaited children included."""
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS


@contextlib.contextmanager
def serving(
    command: Sequence[str], environment: Mapping[str, str], wait: Callable[[subprocess.Popen[bytes]], None]
) -> Iterator[int]:
    """The pid of a server once ``wait`` returns; ended on leaving. What it said is shown when ``wait`` fails."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        try:
            wait(process)
            yield process.pid
        except RuntimeError:
            log.seek(0)
            sys.stderr.write(log.read()[-2000:].decode(errors="replace"))
            raise
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def environment_with(folder: Path, packages: Sequence[str]) -> Path | None:
    """The Python of a virtual environment with ``packages``, made at first use in ``folder``; None if that fails."""
    python, mark = folder / "bin" / "python", folder / "installed"
    if mark.exists():
        return python
    uv = shutil.which("uv")
    make = [uv, "venv", "--clear", "-q", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    pip = [uv, "pip", "install", "-q", "--python", str(python)] if uv else [str(python), "-m", "pip", "install", "-q"]
    for command in ([*make, str(folder)], [*pip, *packages]):
        if subprocess.run(command, check=False).returncode:
            return None
    mark.touch()
    return python
