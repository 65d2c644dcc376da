"""The engines that speak, one file each, behind one small interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Instructable(Protocol):
    """A backend that can be told in words how to speak."""

    def instructed(
        self, text: str, voice: Voice, speed: float, seed: list[int] | None, instructions: str
    ) -> Iterator[Samples]:
        """As ``synthesize``, in the manner that ``instructions`` describe."""


@runtime_checkable
class Batching(Protocol):
    """A backend whose steps serve several sentences at once, so that more of them than there are CPUs should run."""

    threads: int
    """Sentences that it speaks together."""


@runtime_checkable
class Stoppable(Protocol):
    """A synthesis that can be ended from another thread, while it works on its next chunk."""

    def stop(self) -> None: ...
