"""Memory that is read from end to end again and again, in pages of 2 MB: fewer of them are to be looked up."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable

SIZE = 2 << 20
GAP = SIZE
"""Stretches that are not further apart are taken as one: a hole of less than a page costs less than the two pages that
reach into it, which would stay small."""

_COLLAPSE = 25
"""MADV_COLLAPSE, which this Python does not name: at once, and not when the kernel finds the time. Linux 6.1."""


def advise(stretches: Iterable[tuple[int, int]]) -> int:
    """Ask for huge pages under ``stretches``, (address, bytes); how many bytes lie in them if the system complies.

    It may have none to give, which costs nothing but speed.
    """
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return 0
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    advised = 0
    for begin, end in _joined(stretches):
        first, last = -(-begin // SIZE) * SIZE, end // SIZE * SIZE
        if first < last:
            for advice in (mmap.MADV_HUGEPAGE, _COLLAPSE):
                libc.madvise(first, last - first, advice)
            advised += last - first
    return advised


def _joined(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The beginnings and ends of what lies side by side."""
    found: list[tuple[int, int]] = []
    for begin, size in sorted(stretches):
        if found and begin - found[-1][1] <= GAP:
            found[-1] = (found[-1][0], begin + size)
        else:
            found.append((begin, begin + size))
    return found
