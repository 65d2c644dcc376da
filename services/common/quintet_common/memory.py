"""Memory that a burst of work has left in the C library's allocator goes back to the system.

glibc keeps what was freed between live blocks, and learns from the first large block to keep the later ones, too. With
another C library these functions do nothing.
"""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
"""Bytes from which a block gets pages of its own, which go back to the system when it is freed."""


def return_large_blocks() -> None:
    """From now on, large blocks of this process go back when they are freed."""
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return free pages of the heap; takes milliseconds."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
