"""The terminal of ``quintet serve``: lines that stay, and below them one live bar per model while models load."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from quintet.terminal.table import columns_of, cut, pad, width

BAR = 20
"""Columns of a progress bar."""

STEP = 0.25
"""Without a terminal, a line is printed each time that progress passes another of these."""

_DIGITS = re.compile(r"\d+")  # a note that only counts on is not news


@dataclass(frozen=True)
class Progress:
    """One model that is loading, or has done so. ``fraction`` is 0 to 1."""

    name: str
    state: str
    fraction: float
    note: str


class Screen:
    """Writes to ``out``; bars are drawn in place on a terminal, and are plain lines everywhere else."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._drawn: list[str] = []
        self._said: dict[str, tuple[str, str, int]] = {}

    @property
    def columns(self) -> int | None:
        """How wide it is; None where it is no terminal."""
        return columns_of(self._out)

    def say(self, *lines: str) -> None:
        """Print lines that stay, above the bars."""
        bars = self._drawn
        self._erase()
        self._write("".join(line + "\n" for line in lines))
        self._draw(bars)

    def progress(self, models: Sequence[Progress]) -> None:
        """Show how far loading is."""
        if self._live:
            columns = shutil.get_terminal_size().columns - 1
            size = max((width(model.name) for model in models), default=0)
            self._erase()
            self._draw([cut(_bar(model, size), columns) for model in models])
        else:
            self._print_changes(models)

    def end_progress(self) -> None:
        self._erase()
        self._said.clear()

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{len(self._drawn)}A\x1b[J")
            self._drawn = []

    def _draw(self, bars: list[str]) -> None:
        self._write("".join(bar + "\n" for bar in bars))
        self._drawn = bars

    def _print_changes(self, models: Sequence[Progress]) -> None:
        for model in models:
            if model.state == "failed":  # why, its service has said, and the table says it once more
                model = replace(model, note="")
            key = (model.state, _DIGITS.sub("", model.note), int(model.fraction / STEP))
            if self._said.get(model.name) != key:
                self._said[model.name] = key
                self._write(f"{model.name}: {_words(model)}\n")

    def _write(self, text: str) -> None:
        # Whoever read this may be gone: a closed terminal, or `head`. Serving, and stopping in order, go on.
        with contextlib.suppress(OSError):
            self._out.write(text)
            self._out.flush()


def _bar(model: Progress, size: int) -> str:
    full = round(BAR * model.fraction) if model.state != "ready" else BAR
    return f"  {pad(model.name, size)}  {'━' * full}{'╌' * (BAR - full)}  {_words(model)}"


def _words(model: Progress) -> str:
    words = f"{model.state} {model.fraction:.0%}" if model.state == "loading" else model.state
    return f"{words}  {model.note}" if model.note else words
