"""How many threads a worker may use: what the cgroup grants, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_quota() -> int:
    """Whole CPUs available to this process, at least 1: the smaller of its affinity and its cgroup v2 quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cpus
