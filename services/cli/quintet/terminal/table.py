"""Tables with columns that line up, also where the text is Chinese."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def width(text: str) -> int:
    """Columns that ``text`` takes in a terminal: two for a wide character, none for a combining mark."""
    return sum(_columns(character) for character in text)


def pad(text: str, columns: int) -> str:
    """``text`` with spaces up to ``columns`` wide."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """``text`` in at most ``columns``, with an ellipsis where it is cut."""
    if width(text) <= columns:
        return text
    kept, used = "", 0
    for character in text:
        used += _columns(character)
        if used > columns - 1:
            break
        kept += character
    return kept + "…" if columns > 0 else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: header, rule, rows."""
    everything = [header, *rows]
    widths = [max(width(row[column]) for row in everything) for column in range(len(header))]
    lines = ["  ".join(pad(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in everything]
    return [lines[0], "  ".join("─" * size for size in widths), *lines[1:]]


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
