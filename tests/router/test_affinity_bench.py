"""The simulation of prefix affinity tells what docs/benchmarks.md says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "affinity"


def test_conversations_keep_to_replicas_that_have_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    run = __import__("run")
    talks = [[(turn, run.conversation_of(turn).chunks) for turn in turns] for turns in run.Recording(160, seed=3)]
    prefix, session, least = (run.simulate(talks, 8, policy, 390) for policy in ("prefix", "session", "least"))
    assert prefix.reused > 1.8 * least.reused
    assert prefix.reused > session.reused - 0.03
    assert prefix.busiest < 1.6
    monkeypatch.delitem(sys.modules, "run", raising=False)
