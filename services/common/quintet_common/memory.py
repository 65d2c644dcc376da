"""Memory that a burst of work has left in the C library's allocator goes back to the system.

glibc keeps what was freed between live blocks, and learns from the first large block to keep the later ones, too. With
another C library these functions do nothing.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 20


def return_large_blocks(least: int = _LARGE) -> None:
    """From now on, blocks of this process of ``least`` bytes and more go back when they are freed.

    Below are those that come again and again: new pages for each cost more than what is done with them.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, least)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * least)


def give_back() -> None:
    """Return free pages of the heap; takes milliseconds."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
