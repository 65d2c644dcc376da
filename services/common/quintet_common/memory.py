"""What the C library's allocator does with memory that is freed."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
"""Bytes from which a block gets pages of its own, which go back to the system when it is freed."""


def return_large_blocks() -> None:
    """Keep the allocator of this process from holding on to large freed blocks. Does nothing where it is not glibc's.

    By itself glibc learns from the first such block to keep the later ones.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
