"""How much memory there is, and how much of it keys and values may take."""

from __future__ import annotations

from pathlib import Path

import torch
from quintet_common.engine_args import OFF, Transformers
from quintet_common.models_yml import ModelSpec
from quintet_common.sizes import parse_bytes
from quintet_common.worker.host import settings

LEAST = 192 << 20
"""Bytes for keys and values that even a tiny model gets on a CPU."""

CPU_SHARE, CUDA_SHARE = 0.5, 0.9
"""Of what is free after loading, the most that keys and values take."""


def shares(spec: ModelSpec, device: torch.device, weights: int) -> tuple[int, int]:
    """Bytes for the keys and values of what runs, and for those that the prefix cache keeps."""
    granted = settings(spec, Transformers)
    room = for_cache(device, weights) if granted.kv_memory is None else parse_bytes(granted.kv_memory)
    for_prefixes = granted.prefix_cache
    if str(for_prefixes).lower() in OFF:
        return room, 0
    kept = room // 3 if for_prefixes is None else parse_bytes(for_prefixes)
    # On a GPU what was found free is all there is; what was granted in words is granted.
    return room if granted.kv_memory is not None or device.type == "cpu" else room - kept, kept


def for_cache(device: torch.device, weights: int) -> int:
    """Bytes for keys and values: on CUDA most of what is free, on a CPU about half of what the ``weights`` take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    return int(min(max(LEAST, weights // 2), _free() * CPU_SHARE))


def _free() -> int:
    """Bytes this process may still take: the machine's available memory or what the cgroup leaves, if that is less."""
    free = 4 << 30
    try:
        meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(meminfo["MemAvailable"].split()[0]) << 10
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, KeyError):
        pass
    return max(free, 0)
