"""The real processes end with their supervisor, all of them. Each test starts a stack of its own, of one light kind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from stack import Stack, descendants, wait_gone


@pytest.fixture
def small(tmp_path: Path) -> Stack:
    return Stack(tmp_path, "--only", "tts")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_and_leaves_nothing(small: Stack, number: signal.Signals) -> None:
    started = descendants(small.process.pid)
    assert len(started) >= 3, "the router, the service and the model's process"
    assert small.stop(number) == 0
    assert wait_gone(started, 20) == {}
    assert "Traceback" not in small.text()


def test_a_supervisor_that_is_killed_takes_everything_with_it(small: Stack) -> None:
    started = descendants(small.process.pid)
    os.kill(small.process.pid, signal.SIGKILL)
    small.process.wait()
    assert wait_gone(started, 60) == {}
