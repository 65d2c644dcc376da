"""Processes and what they use: pinned to a core, counted as trees."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from processes import TICKS, tree  # noqa: E402

CACHE = HERE.parents[1] / "build" / "bench-router"
"""Everything that the benchmark makes and installs."""


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """``command`` pinned to ``core``; root may also put it before what else the machine does."""
    urgent = ["nice", "-n", "-5"] if os.geteuid() == 0 else []
    return [*urgent, "taskset", "-c", str(core), *command]


def cpu_seconds(pid: int) -> float:
    """User and system time that the tree's threads have used so far; to the nanosecond where the kernel tells it."""
    nanoseconds, ticks = 0, 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                nanoseconds += int((task / "schedstat").read_text().split()[0])
            continue
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return nanoseconds / 1e9 + ticks / TICKS


def resident_mb(pid: int) -> float:
    """Resident memory of the tree in MB; pages that processes share count once for each."""
    kib = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    kib += int(line.split()[1])
    return kib * 1024 / 1e6


@contextlib.contextmanager
def running(name: str, command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a group and a log of its own, ended on leaving."""
    with (CACHE / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, cwd=CACHE, start_new_session=True
        )
    try:
        yield process
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError):
                os.killpg(process.pid, end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)


def compile_tools() -> None:
    """The mock upstream and the load generator. Ends the process when there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("A C compiler (cc) is needed for the mock upstream and the load generator.")
    for tool in ("mock", "load"):
        command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(CACHE / tool), str(HERE / f"{tool}.c")]
        subprocess.run(command, check=True)


def describe() -> str:
    """The machine in a few words."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    python = (
        f"Python {platform.python_version()} built {'with' if optimized else 'without'} profile-guided optimization"
    )
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, {python}"
