"""How many tests run at once, and what they send nobody."""

from __future__ import annotations

import os

import pytest
from quintet_common.threads import cpu_quota

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests of voices import onnxruntime into their own process

MEMORY_EACH = 6 << 30
"""Bytes: what one process of tests takes at most, with the services and the models that it starts."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process for each core, if there is memory for it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cpu_quota(), memory // MEMORY_EACH))
