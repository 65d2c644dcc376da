"""What needs a GPU is run with pretended ones: the tests of ``on_gpu``, tests of chat, and the checks themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pretend_gpu

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(pretend_gpu.compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="is built for Linux alone"),
]


def pretended(*arguments: str) -> str:
    """What a program prints that runs with pretended GPUs and ends well."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests"),
        "QUINTET_TEST_DEVICE": "cuda:0",
        "PYTEST_ADDOPTS": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pretend_gpu", *arguments], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_what_is_for_a_gpu_alone() -> None:
    assert " skipped" not in pretended("-m", "pytest", "-v", "tests/on_gpu").splitlines()[-1]


def test_the_engine_says_what_generate_says() -> None:
    # A double of FlashAttention that waits for the device is for the CPU.
    cases = "not (pages or table)"
    pretended("-m", "pytest", "tests/chat/test_engine_equality.py", "tests/chat/test_engine_abuse.py", "-k", cases)


@pytest.mark.parametrize("kind", ["chat", "embed", "vision"])
def test_the_checks_come_to_their_end(kind: str) -> None:
    printed = pretended("bench/gpu/run.py", "--tiny", "--only", kind)
    assert "On pretended GPU" in printed
    assert "FAILED" not in printed
