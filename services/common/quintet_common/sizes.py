"""Amounts of memory as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


def parse_bytes(text: object) -> int:
    """Bytes of an amount like ``512MB`` or ``2GiB``. Raises ValueError for anything else."""
    match = _SIZE.fullmatch(str(text))
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is no amount of memory; write it like 2GB.")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
