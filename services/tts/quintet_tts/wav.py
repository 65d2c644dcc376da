"""The header of a WAV file: 16 bit, mono."""

from __future__ import annotations

import struct
from io import SEEK_END
from typing import IO

HEADER_BYTES = 44
UNKNOWN = 0xFFFFFFFF
"""The size that a WAV file has while nobody knows how long it will be."""


def wav_header(rate: int) -> bytes:
    """The 44 bytes before little-endian int16 samples at ``rate`` Hz of which nobody knows yet how many come."""
    head = struct.pack("<4sI4s", b"RIFF", UNKNOWN, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return head + form + struct.pack("<4sI", b"data", UNKNOWN)


def fill_in_sizes(wav: IO[bytes]) -> None:
    """Make the header of a whole file that began with ``wav_header`` true."""
    length = wav.seek(0, SEEK_END)
    for place, before in ((4, 8), (HEADER_BYTES - 4, HEADER_BYTES)):
        wav.seek(place)
        wav.write(struct.pack("<I", length - before))
