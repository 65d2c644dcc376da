"""hibari: one good English voice from a wheel, over a hundred times faster than it speaks, on one CPU core."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from hibari import Hibari
from quintet_common.worker.host import Report

from quintet_tts.backends.onnx import session
from quintet_tts.speech.reshape import Samples
from quintet_tts.voices import Engine, Voice

_LARGEST_NUMBER = 36
"""Digits of the largest number that hibari has a word for: decillions."""

_NUMBER = re.compile(r"\d[\d,]*")
_POWERS = "²³"
"""For these it has words."""


class HibariBackend:
    """Shared by all threads; each call computes on the thread that makes it."""

    sample_rate: int = Hibari.sample_rate
    min_speed = 0.5
    max_speed = 2.0
    joins_up_to = 0

    def __init__(self, report: Report) -> None:
        report(0.1, "loading the voice")
        self._model = Hibari(threads=1)
        self._model.sess = session(self._model.model_path)
        report(0.4, "loading the pronunciation dictionary")
        _ = self._model.g2p
        report(0.9, "warming up")
        self._model("Ready to read: quintet.")

    def voices(self) -> list[Voice]:
        return [Voice(id="heart", name="Heart", language="en-US", gender="female", engine=Engine.HIBARI)]

    def synthesize(self, text: str, voice: Voice, speed: float, seed: list[int] | None) -> Iterator[Samples]:
        del voice  # there is one
        # One breath, even where hibari's own rules would see two sentences.
        phonemes = " ".join(self._model.phonemize(_readable(text)))
        if phonemes:
            yield self._model.from_phonemes(phonemes, speed=speed, seed=seed)


def _readable(text: str) -> str:
    """The text with plain digits for circled ones, and with what is too long for a number as digits."""
    plain = "".join(str(unicodedata.digit(each)) if _is_odd_digit(each) else each for each in text)
    return _NUMBER.sub(_digit_by_digit, plain)


def _is_odd_digit(character: str) -> bool:
    return character.isdigit() and not character.isdecimal() and character not in _POWERS


def _digit_by_digit(number: re.Match[str]) -> str:
    digits = number[0].replace(",", "")
    return number[0] if len(digits) <= _LARGEST_NUMBER else " ".join(digits)
