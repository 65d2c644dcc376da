"""The header of a WAV file: 16 bit, mono."""

from __future__ import annotations

import struct

HEADER_BYTES = 44
UNKNOWN = 0xFFFFFFFF
"""The size that a WAV file has while nobody knows how long it will be."""


def wav_header(rate: int) -> bytes:
    """The 44 bytes before little-endian int16 samples at ``rate`` Hz of which nobody knows yet how many come."""
    head = struct.pack("<4sI4s", b"RIFF", UNKNOWN, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return head + form + struct.pack("<4sI", b"data", UNKNOWN)


def with_exact_sizes(wav: bytearray) -> bytearray:
    """A whole file that began with ``wav_header``, with its sizes filled in, in place."""
    struct.pack_into("<I", wav, 4, len(wav) - 8)
    struct.pack_into("<I", wav, HEADER_BYTES - 4, len(wav) - HEADER_BYTES)
    return wav
