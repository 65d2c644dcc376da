"""Tables with columns that line up, also where the text is Chinese, and that fit into the terminal."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TextIO

GAP = 2
"""Columns between two of a table."""

NARROW = 10
"""No column is made narrower than this: its words would be hard to read."""

_BREAKS = " /-_,:"
"""Behind these a text is broken rather than elsewhere."""


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


def columns_of(out: TextIO) -> int | None:
    """How wide the terminal ``out`` is; None where it is none, and lines may be of any length."""
    return shutil.get_terminal_size().columns if out.isatty() else None


def wrap(text: str, columns: int) -> list[str]:
    """``text`` in lines of at most ``columns``, 2 or more, broken between its parts where that is possible."""
    lines = []
    while width(text) > columns:
        fits = 1
        while width(text[: fits + 1]) <= columns:
            fits += 1
        end = fits if text[fits] == " " else max(text.rfind(sign, 0, fits) for sign in _BREAKS) + 1
        end = end if end * 3 >= fits else fits
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, text]


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: int | None = None,
    notes: Mapping[int, str] | None = None,
) -> list[str]:
    """The lines of a table: header, rule, rows. ``notes`` has what is to be said of a row, by its index.

    In a terminal of ``columns`` notes are below their rows, and if the table is wider than that, long cells are wrapped
    and columns without any are left out. Elsewhere a row is one line.
    """
    notes = notes or {}
    widths = [max(width(row[column]) for row in (header, *rows)) for column in range(len(header))]
    if columns is not None and sum(widths) + GAP * (len(widths) - 1) > columns:
        used = [index for index in range(len(header)) if any(row[index] for row in rows)]
        header, *rows = ([row[index] for index in used] for row in (header, *rows))
        widths = _narrowed([widths[index] for index in used], columns)
    lines = [*_row(header, widths), (" " * GAP).join("─" * size for size in widths)]
    for index, row in enumerate(rows):
        lines += _row(row, widths)
        if index in notes and columns is None:
            lines[-1] += f": {notes[index]}"
        elif index in notes and columns is not None:
            lines += [" " * GAP + line for line in wrap(notes[index], max(columns - GAP, NARROW))]
    return lines


def _narrowed(widths: Sequence[int], columns: int) -> list[int]:
    """Each time the widest is made narrower, until all fit."""
    widths = list(widths)
    while sum(widths) + GAP * (len(widths) - 1) > columns and max(widths) > NARROW:
        widths[widths.index(max(widths))] -= 1
    return widths


def _row(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [wrap(cell, size) for cell, size in zip(row, widths, strict=True)]
    height = max(len(cell) for cell in cells)
    full = [cell + [""] * (height - len(cell)) for cell in cells]
    return [
        (" " * GAP).join(pad(part, size) for part, size in zip(line, widths, strict=True)).rstrip()
        for line in zip(*full, strict=True)
    ]


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
