"""Pieces end to end: the right pauses, no clicks, nothing cut off."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray
from quintet_tts.speech.joins import CLAUSE, LEAD, NONE, PARAGRAPH, SENTENCE, Joiner, pause_after
from tts.sound import SAMPLE_RATE, tone

SILENCE = np.zeros(SAMPLE_RATE // 2, np.float32)
Chunks = Iterable[NDArray[np.float32]]


def joined(*pieces: Chunks, pause: float) -> NDArray[np.float32]:
    joiner = Joiner()
    return np.concatenate([*(chunk for piece in pieces for chunk in joiner.piece(piece, pause)), joiner.finish()])


@pytest.mark.parametrize("parts", [1, 3, 17, 1000])
def test_silence_around_a_sentence_becomes_its_pause(parts: int) -> None:
    sound = np.concatenate([SILENCE, tone(1.0), SILENCE])
    result = joined(np.array_split(sound, parts), pause=0.35)
    assert result.size / SAMPLE_RATE == pytest.approx(1.0 + LEAD / SAMPLE_RATE + 0.35, abs=0.002)


def test_silence_inside_a_sentence_is_kept() -> None:
    chunks = [tone(0.5), SILENCE, SILENCE, tone(0.5)]
    assert joined(chunks, pause=0.0).size == pytest.approx(2 * SAMPLE_RATE, abs=100)


def test_a_sound_cut_off_in_its_middle_does_not_click() -> None:
    hard = np.full(SAMPLE_RATE, 0.5, np.float32)
    result = joined([hard], [hard], pause=0.1)
    assert abs(result[0]) < 0.01
    assert np.abs(np.diff(result[: SAMPLE_RATE // 2])).max() < 0.01


def test_sound_is_passed_on_before_the_sentence_is_whole() -> None:
    def chunks():  # type: ignore[no-untyped-def]
        yield tone(0.5)
        raise AssertionError("asked for more before giving what there was")

    assert next(iter(Joiner().piece(chunks(), 0.1))).size > 0


def test_mere_silence_is_nothing() -> None:
    assert joined([SILENCE, SILENCE], [], pause=0.5).size == 0


def test_a_pause_goes_out_with_the_sound_behind_it() -> None:
    joiner = Joiner()
    first, second = ([*joiner.piece([tone(0.5)], 0.3)] for _ in range(2))
    assert len(first) == len(second) == 1
    assert second[0].size - first[0].size == pytest.approx(0.3 * SAMPLE_RATE, abs=100)
    assert joiner.finish().size == pytest.approx(0.3 * SAMPLE_RATE, abs=100)
    assert joiner.finish().size == 0


@pytest.mark.parametrize(
    ("piece", "pause"),
    [
        ("A sentence. ", SENTENCE),
        ("“Quoted!” ", SENTENCE),
        ("一句话。", SENTENCE),
        ("a clause, ", CLAUSE),
        ("一半，", CLAUSE),
        ("cut anywhere ", NONE),
        ("A heading\n\n", PARAGRAPH),
        ("नमस्ते। ", SENTENCE),
        ("\u0643\u064a\u0641\u060c ", CLAUSE),
    ],
)
def test_pauses(piece: str, pause: float) -> None:
    assert pause_after(piece) == pause
