"""What ``torch.cuda`` says and does of pretended GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo  # it looks at what is in torch.cuda when it is imported

MEMORY = 8 << 30
"""Bytes that each of the GPUs says to have."""

GPU = SimpleNamespace(name="pretended GPU", major=9, minor=0, total_memory=MEMORY, multi_processor_count=1)


class Stream:
    """Work is done at once, in whatever stream."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        self.cuda_stream = 0

    def wait_stream(self, _other: Stream) -> None: ...
    def synchronize(self) -> None: ...


class Event:
    def __init__(self, *_args: Any, **_options: Any) -> None: ...
    def record(self, *_args: Any) -> None: ...
    def wait(self, *_args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


class Graph:
    """What ``torch.cuda.CUDAGraph`` is for."""

    count = 0

    def __init__(self, *_args: Any, **_options: Any) -> None:
        Graph.count += 1
        self.number = Graph.count

    def replay(self) -> None:
        torch.ops.pretend_gpu.replay(self.number)

    def reset(self) -> None:
        torch.ops.pretend_gpu.forget(self.number)

    __del__ = reset


@contextlib.contextmanager
def graph(captured: Graph, *_args: Any, **_options: Any) -> Iterator[None]:
    torch.ops.pretend_gpu.begin(captured.number)
    try:
        yield
    finally:
        torch.ops.pretend_gpu.end()


class Current:
    """``torch.cuda.device``: another current device for a while."""

    def __init__(self, device: Any) -> None:
        self._device = number(device)

    def __enter__(self) -> None:
        self._before = number()
        set_device(self._device)

    def __exit__(self, *_error: Any) -> None:
        set_device(self._before)


def number(device: Any = None) -> int:
    """Which GPU is meant; the current one by default."""
    index = device if isinstance(device, int) else torch.device(device).index if device is not None else None
    current: int = torch.ops.pretend_gpu.get_device()
    return current if index is None else index


def set_device(device: Any) -> None:
    torch.ops.pretend_gpu.set_device(number(device))


def replace() -> None:
    """Put all of this into torch."""
    nothing = (
        *("_lazy_init", "init", "synchronize", "empty_cache", "manual_seed", "manual_seed_all", "ipc_collect"),
        *("reset_peak_memory_stats", "set_per_process_memory_fraction"),
    )
    zero = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    ours: dict[str, Any] = {
        **dict.fromkeys(nothing, lambda *_args, **_options: None),
        **dict.fromkeys(zero, lambda *_args: 0),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "current_device": number,
        "set_device": set_device,
        "device": Current,
        "mem_get_info": lambda *_args: (MEMORY, MEMORY),
        "memory_stats": lambda *_args: {},
        "get_device_name": lambda *_args: GPU.name,
        "get_device_properties": lambda *_args: GPU,
        "get_device_capability": lambda *_args: (GPU.major, GPU.minor),
        "is_bf16_supported": lambda *_args, **_options: True,
        "is_current_stream_capturing": lambda: False,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda _stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "default_stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 0),
    }
    for name, value in ours.items():
        setattr(torch.cuda, name, value)
    torch.accelerator.is_available = ours["is_available"]
    torch.accelerator.device_count = ours["device_count"]
    torch.accelerator.current_accelerator = lambda *_args, **_options: torch.device("cuda")
    torch.accelerator.current_device_index = number
    torch._C._cuda_getCurrentRawStream = lambda *_args: 0
