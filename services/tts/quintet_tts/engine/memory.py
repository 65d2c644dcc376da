"""Memory that synthesis takes for a moment, back to the system after it."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
"""Bytes from which an array gets pages of its own, which go back when it is freed."""


def return_large_arrays() -> None:
    """Keep the C library from holding on to large freed arrays: a third less resident memory. glibc only."""
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def trim() -> None:
    """Give back what loading has freed. glibc only."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
