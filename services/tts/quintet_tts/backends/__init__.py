"""The engines that speak, one file each, behind one small interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from quintet_tts.speech.reshape import Samples
from quintet_tts.voices import Voice


class Backend(Protocol):
    """One engine. ``synthesize`` is called from several threads at once."""

    sample_rate: int
    """Hz, of what it yields."""
    min_speed: float
    max_speed: float
    """The pace that it can take by itself."""
    joins_up_to: int
    """Short sentences are given to it together up to this weight (``speech.splitter``); 0: each alone costs no more."""

    def voices(self) -> list[Voice]: ...

    def synthesize(self, text: str, voice: Voice, speed: float, seed: list[int] | None) -> Iterator[Samples]:
        """Speak one sentence: mono float32 within -1 and 1, as it is made. Closing the iterator ends the work.

        The same ``seed`` gives the same sound, None a sound of its own each time. Raises ApiError.
        """
