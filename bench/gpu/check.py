"""What every check on a GPU is made of: where it runs, and the table in which it says what it found.

A check is a file ``check_NAME.py`` beside this one with a function ``check(setup: Setup) -> Iterator[Table]``. It makes
its models from configurations, with random weights, so that nothing is downloaded.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """Where and how large. ``tiny`` models show anywhere that the check itself runs; their figures say nothing."""

    device: torch.device
    tiny: bool

    @property
    def dtype(self) -> torch.dtype:
        """For figures of speed; comparisons token by token are made in float32."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def where(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, do: Callable[[], T]) -> tuple[float, T]:
        """Seconds that ``do`` takes, work queued on the device included, and what it returns."""
        self.synchronize()
        start = time.perf_counter()
        value = do()
        self.synchronize()
        return time.perf_counter() - start, value

    def free(self) -> None:
        """Give unreferenced memory of the device back, between two models."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass
class Table:
    """Rows of cells under ``columns``; ``failures`` are sentences, each a reason for the check to fail."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append([str(cell) for cell in cells])

    def verdict(self, passed: bool, sentence: str) -> str:
        """``ok`` or ``FAILED`` for a cell; a failure is remembered with its ``sentence``."""
        if not passed:
            self.failures.append(sentence)
        return "ok" if passed else "FAILED"

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
            for cells in (self.columns, ["-" * width for width in widths], *self.rows)
        ]
        return "\n".join([f"### {self.title}", "", *lines, *(f"FAILED: {failure}" for failure in self.failures), ""])
