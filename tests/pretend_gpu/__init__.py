"""Runs programs that ask for a GPU on a machine without one, to see that they would run there.

    python -m pretend_gpu PROGRAM.py [ARGUMENT...]
    python -m pretend_gpu -m MODULE [ARGUMENT...]

torch then has two GPUs whose memory and operations are the CPU's (device.cpp): what is computed is right, and tensors of
different devices do not mix. CUDA graphs are captured and replayed; what is not on the device stays as it was when it
was captured, and what waits for the device cannot be captured. FlashAttention is computed plainly, from the same input
(flash.py). What is written for a GPU's cores does not run: only a real one shows whether that works, and how fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pretend_gpu import flash

SOURCE = Path(__file__).with_name("device.cpp")
MEMORY = 8 << 30
"""Bytes that each of the GPUs says to have."""
CAPABILITY = (9, 0)

operators = torch.library.Library("aten", "IMPL")
"""Those that the CPU has no counterpart of."""


def compiler() -> str | None:
    """What device.cpp can be compiled with here, if anything."""
    return shutil.which("g++") or shutil.which("clang++")


def build() -> Path:
    """The library that device.cpp compiles to, made once for a version of torch."""
    key = hashlib.sha256(SOURCE.read_bytes() + str(torch.__version__).encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"quintet-pretend-gpu-{os.getuid()}" / f"{key}.so"
    if library.exists():
        return library
    found = compiler()
    if found is None:
        raise RuntimeError("a C++ compiler is needed")
    home = Path(torch.__file__).parent
    library.parent.mkdir(mode=0o700, exist_ok=True)
    new = library.with_suffix(f".{os.getpid()}")
    subprocess.run(
        [
            *(found, "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{home}/include"),
            *(f"-I{home}/include/torch/csrc/api/include", str(SOURCE)),
            *(f"-L{home}/lib", "-ltorch", "-ltorch_cpu", "-lc10", "-o", str(new)),
        ],
        check=True,
    )
    new.rename(library)
    return library


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
    replays = 0

    def __init__(self, *_args: Any, **_options: Any) -> None:
        Graph.count += 1
        self.number = Graph.count

    def replay(self) -> None:
        Graph.replays += 1
        torch.ops.pretend_gpu.replay(self.number)

    def reset(self) -> None:
        torch.ops.pretend_gpu.forget(self.number)

    __del__ = reset


@contextlib.contextmanager
def capture(graph: Graph, *_args: Any, **_options: Any) -> Iterator[None]:
    torch.ops.pretend_gpu.begin(graph.number)
    try:
        yield
    finally:
        torch.ops.pretend_gpu.end()


class Current:
    """``torch.cuda.device``."""

    def __init__(self, device: Any) -> None:
        self._device = number(device)

    def __enter__(self) -> None:
        self._before = torch.ops.pretend_gpu.get_device()
        torch.ops.pretend_gpu.set_device(self._device)

    def __exit__(self, *_error: Any) -> None:
        torch.ops.pretend_gpu.set_device(self._before)


def number(device: Any = None) -> int:
    if isinstance(device, int):
        return device
    index = torch.device(device).index if device is not None else None
    found: int = torch.ops.pretend_gpu.get_device() if index is None else index
    return found


def host_reads() -> int:
    """How often the host has waited for what a GPU had to tell."""
    reads: int = torch.ops.pretend_gpu.host_reads()
    return reads


def install() -> None:
    """Let torch have two GPUs, for the rest of this process."""
    import torch._dynamo  # it looks at what it finds in torch.cuda when it is imported

    torch.ops.load_library(build())
    operators.impl("_flash_attention_forward", flash.attend, "CUDA")
    here = SimpleNamespace(
        name="pretended GPU", major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=MEMORY, multi_processor_count=1
    )
    nothing: dict[str, Any] = dict.fromkeys(
        ("_lazy_init", "init", "synchronize", "empty_cache", "reset_peak_memory_stats", "manual_seed_all", "manual_seed",
         "set_per_process_memory_fraction", "ipc_collect"), lambda *_args, **_options: None,
    )  # fmt: skip
    zero = dict.fromkeys(
        ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), lambda *_args: 0
    )
    ours = {
        **nothing,
        **zero,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "current_device": number,
        "set_device": lambda device: torch.ops.pretend_gpu.set_device(number(device)),
        "device": Current,
        "mem_get_info": lambda *_args: (MEMORY, MEMORY),
        "memory_stats": lambda *_args: {},
        "get_device_name": lambda *_args: here.name,
        "get_device_properties": lambda *_args: here,
        "get_device_capability": lambda *_args: CAPABILITY,
        "is_bf16_supported": lambda *_args, **_options: True,
        "is_current_stream_capturing": lambda: False,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda _stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "default_stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: (0, 0),
    }
    for name, value in ours.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getCurrentRawStream = lambda *_args: 0
