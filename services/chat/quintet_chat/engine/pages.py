"""Tensors on the CPU that take memory only where they were written, and give parts of it back.

The system does the paging: address space is reserved for the whole tensor, a page of it gets memory when it is first
written, and is zero until then. So a tensor can be as large as it might ever have to be, without tables or copies.
"""

from __future__ import annotations

import math
import mmap
import sys

import torch

_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which this Python's mmap does not name: the address space is not counted as memory in use."""


class Pages:
    """A zeroed tensor of ``shape``; ``tensor`` is it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = math.prod(shape) * dtype.itemsize
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # A huge page would take 2 MB for the first token of every head of every slot.
            self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self.tensor = torch.frombuffer(self._map, dtype=dtype).view(shape)

    def discard(self, part: torch.Tensor) -> None:
        """Give back the memory of ``part``, a contiguous view of ``tensor``; it reads as zeros again.

        Pages that lie in it only partly keep their memory and what was written.
        """
        begin = part.data_ptr() - self.tensor.data_ptr()
        end = begin + part.numel() * part.element_size()
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
