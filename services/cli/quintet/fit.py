"""Whether the weights of all models fit onto this machine: what they need, and what is free, by device."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from quintet_common.footprint import in_words, needed
from quintet_common.models_yml import ModelSpec

CPU = "cpu"
Device = int | str
"""The number of a GPU, or ``cpu``."""

_NODES = ("nvidia[0-9]*", "nvhost-gpu", "kfd", "dxg")
"""Of the GPUs of NVIDIA, of its boards, of AMD, and of Windows under WSL."""


def free() -> dict[Device, int]:
    """Bytes that can be had, by device: of GPUs what their driver says, of the machine what is available."""
    found: dict[Device, int] = {}
    if program := shutil.which("nvidia-smi"):
        query = [program, "--query-gpu=index,memory.free", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        for line in answer.stdout.splitlines() if answer.returncode == 0 else []:
            index, _, mebibytes = line.partition(",")
            if index.strip().isdigit() and mebibytes.strip().isdigit():
                found[int(index)] = int(mebibytes) << 20
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found[CPU] = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        pass  # another system than Linux
    return found


def has_gpu(available: Mapping[Device, int]) -> bool:
    """Whether there is any GPU, also one that its driver's program says nothing of, as in many containers."""
    nodes = (path for glob in _NODES for path in Path("/dev").glob(glob))
    return any(isinstance(device, int) for device in available) or next(nodes, None) is not None


def problems(specs: Iterable[ModelSpec], available: Mapping[Device, int]) -> list[str]:
    """A line for each device that is asked for more than it has. Broken files are not its matter."""
    wanted: dict[Device, int] = {}
    for spec in specs:
        places = devices(spec, available)
        with contextlib.suppress(OSError):
            for device in places:
                wanted[device] = wanted.get(device, 0) + (needed(spec) or 0) // len(places)
    lines: list[str] = []
    for device, size in wanted.items():
        name = "this machine" if device == CPU else f"GPU {device}"
        if device not in available and device != CPU:
            lines.append(f"{name} is not there, and a model is to go onto it.")
        elif size > available.get(device, size):
            has = in_words(available[device])
            lines.append(f"the weights of the models for {name} need {in_words(size)}, but it has {has} free.")
    return lines


def devices(spec: ModelSpec, available: Mapping[Device, int]) -> list[Device]:
    """Where the weights go: onto the GPUs that ``memory`` names, or the first; where there are none, beside the CPU."""
    named: list[Device] = [device for device in spec.memory if isinstance(device, int)]
    if not any(isinstance(device, int) for device in available) or spec.device == CPU or (spec.memory and not named):
        return [CPU]
    if named:
        return named
    return [int(spec.device.partition(":")[2] or 0)]
