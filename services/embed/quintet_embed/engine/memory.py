"""Memory that a burst of work has left in the allocator goes back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return free heap pages to the system; takes milliseconds. Does nothing where the C library is not glibc.

    glibc keeps what was freed between live blocks: measured here, 140 of 765 MB after a burst of long texts.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
