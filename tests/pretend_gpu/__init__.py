"""Runs programs that ask for a GPU on a machine without one, to see that they would run there.

    python -m pretend_gpu PROGRAM.py [ARGUMENT...]
    python -m pretend_gpu -m MODULE [ARGUMENT...]

torch then has two GPUs whose memory and operations are the CPU's (device.cpp): what is computed is right, and tensors
of different devices do not mix. CUDA graphs are captured and replayed: what is not on the device stays as it was when
it was captured, and what waits for the device cannot be captured. FlashAttention is computed plainly, from the same
input (operators.py). What is written for a GPU's cores does not run: only a real one shows whether that works, and how
fast.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")


def compiler() -> str | None:
    """What device.cpp can be compiled with here, if anything."""
    return shutil.which("g++") or shutil.which("clang++")


def install() -> None:
    """Let torch have two GPUs, for this process. Before torch is imported: it asks once what there is."""
    assert "torch" not in sys.modules
    library = _built()
    ctypes.CDLL(str(_torch() / "lib" / "libtorch.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))
    from pretend_gpu import cuda, operators

    operators.register()
    cuda.replace()


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _built() -> Path:
    """What device.cpp compiles to, made once for a version of torch."""
    key = hashlib.sha256(SOURCE.read_bytes() + importlib.metadata.version("torch").encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"quintet-pretend-gpu-{os.getuid()}" / f"{key}.so"
    if library.exists():
        return library
    found, home = compiler(), _torch()
    if found is None:
        raise RuntimeError("a C++ compiler is needed")
    library.parent.mkdir(mode=0o700, exist_ok=True)
    new = library.with_suffix(f".{os.getpid()}")
    command = [
        *(found, "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{home}/include"),
        *(f"-I{home}/include/torch/csrc/api/include", str(SOURCE)),
        *(f"-L{home}/lib", "-ltorch", "-ltorch_cpu", "-lc10", "-o", str(new)),
    ]
    subprocess.run(command, check=True)
    new.rename(library)
    return library
