"""Sample rate and pace, without a change of pitch."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from quintet_tts.speech.reshape import SAMPLE_RATE, reshape
from tts.sound import pitch, tone


@pytest.mark.parametrize("rate", [16000, 22050, 24000, 48000])
@pytest.mark.parametrize("tempo", [0.5, 0.8, 1.0, 2.0])
def test_length_and_pitch(rate: int, tempo: float) -> None:
    chunks = np.array_split(tone(2.0, rate=rate), 5)
    result = np.concatenate(list(reshape(chunks, rate, tempo)))
    assert result.dtype == np.float32
    assert result.size / SAMPLE_RATE == pytest.approx(2.0 / tempo, abs=0.06)
    assert pitch(result) == pytest.approx(220, abs=3)


def test_what_needs_no_change_is_passed_as_it_is() -> None:
    sound = tone(0.1)
    assert next(reshape([sound], SAMPLE_RATE, 1.0)) is sound


def test_empty_and_no_chunks() -> None:
    assert list(reshape([np.zeros(0, np.float32)], 22050, 2.0)) == []
    assert list(reshape([], 22050, 1.0)) == []


def test_a_filter_that_is_left_half_way_does_no_harm() -> None:
    for _ in range(20):
        chunks = reshape([tone(0.5, rate=22050)] * 3, 22050, 0.5)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
    gc.collect()
