"""What make says of variables that mean nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-n", "help", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_misspelt_variable_is_told() -> None:
    for wrong in ("PROT=1", "port=8000"):
        done = make(wrong)
        assert done.returncode == 2
        assert f"There is no {wrong.partition('=')[0]} here. There are PORT, CONFIG, " in done.stderr
    done = make("PORT=1", "ARGS=--only chat --x=y", "PIP_INDEX_URL=https://example.com")
    assert done.returncode == 0, done.stderr
