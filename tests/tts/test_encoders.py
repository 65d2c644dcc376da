"""Each format: decodes to what was encoded, and comes as it is made."""

from __future__ import annotations

import gc
import io
from pathlib import Path

import numpy as np
import pytest
from quintet_tts.protocol import Format
from quintet_tts.speech.encoders import create_encoder
from quintet_tts.wav import HEADER_BYTES, fill_in_sizes
from tts.sound import SAMPLE_RATE, decode, loudness, pitch, seconds, tone

FORMATS: list[Format] = ["mp3", "opus", "aac", "flac", "wav", "pcm"]
PADDING = {"mp3": 0.08, "aac": 0.1, "opus": 0.03}
"""Seconds that the format's frames and the decoder's delay may add."""


def encode(format: Format, parts: int = 4, duration: float = 2.0) -> bytes:
    encoder = create_encoder(format)
    return b"".join(encoder.encode(part) for part in np.array_split(tone(duration), parts)) + encoder.finish()


@pytest.mark.parametrize("format", FORMATS)
def test_it_decodes_to_the_length_that_was_encoded(format: Format) -> None:
    assert seconds(encode(format), format) == pytest.approx(2.0, abs=PADDING.get(format, 1e-6))


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "pcm"])
def test_it_decodes_to_the_sound_that_was_encoded(format: Format) -> None:
    samples, rate = decode(encode(format))
    assert pitch(samples, rate) == pytest.approx(220, abs=2)
    assert loudness(samples) == pytest.approx(loudness(tone(2.0)), rel=0.1)


@pytest.mark.parametrize("format", FORMATS)
def test_the_first_bytes_are_there_before_the_rest_is_made(format: Format) -> None:
    encoder = create_encoder(format)
    first = encoder.encode(tone(1.0))
    assert seconds(first, format) > 0.8


@pytest.mark.parametrize("format", FORMATS)
def test_samples_beyond_full_scale_are_clipped_not_wrapped(format: Format) -> None:
    encoder = create_encoder(format)
    data = encoder.encode(tone(1.0) * 10) + encoder.finish()
    samples = np.frombuffer(data, "<i2") / np.float32(32768) if format == "pcm" else decode(data)[0]
    assert pitch(samples.astype(np.float32), 48000 if format == "opus" else SAMPLE_RATE) == pytest.approx(220, abs=2)


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "pcm"])
def test_every_format_is_the_pcm_again(format: Format) -> None:
    """Decoded and laid over the PCM at the best offset: lossless formats exactly, the others nearly."""
    sound = np.concatenate([tone(0.4, hertz) * np.hanning(9600).astype(np.float32) for hertz in (220, 330, 550)])
    encoder = create_encoder(format)
    data = b"".join(encoder.encode(part) for part in np.array_split(sound, 5)) + encoder.finish()
    samples, rate = decode(data)
    samples = samples[:: rate // SAMPLE_RATE]
    if format in ("wav", "flac"):
        assert np.abs(samples - sound).max() < 2 / 32768
        return
    overlap = (
        np.correlate(samples, sound, "valid") if len(samples) >= len(sound) else np.correlate(sound, samples, "valid")
    )
    alike = overlap.max() / (np.linalg.norm(samples) * np.linalg.norm(sound))
    assert alike > 0.98


def test_an_mp3_states_no_length() -> None:
    data = encode("mp3")
    assert data[:2] == b"\xff\xf3"  # a frame of MPEG 2, layer 3, and no tag before it
    assert b"Info" not in data[:500]
    assert b"Xing" not in data[:500]


def test_pcm_is_int16_at_24_khz_and_nothing_else() -> None:
    encoder = create_encoder("pcm")
    assert encoder.encode(np.array([0, 0.5, -1], np.float32)) == np.array([0, 16383, -32767], "<i2").tobytes()
    assert encoder.finish() == b""


def test_a_streamed_wav_says_that_its_length_is_unknown_and_a_whole_one_says_it() -> None:
    data = encode("wav", duration=1.0)
    assert data[4:8] == data[40:44] == b"\xff\xff\xff\xff"
    file = io.BytesIO(data)
    fill_in_sizes(file)
    whole = file.getvalue()
    assert int.from_bytes(whole[40:44], "little") == 2 * SAMPLE_RATE == len(whole) - HEADER_BYTES
    assert int.from_bytes(whole[4:8], "little") == len(whole) - 8


@pytest.mark.parametrize("format", FORMATS)
def test_an_encoder_that_is_closed_half_way_leaves_nothing(format: Format) -> None:
    def leave(times: int) -> int:
        for _ in range(times):
            encoder = create_encoder(format)
            encoder.encode(tone(0.1))
            encoder.close()
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4  # kilobytes

    leave(100)
    before = leave(100)
    assert leave(300) - before < 20_000
