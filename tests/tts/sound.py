"""Reading back what the service sends, with FFmpeg."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24000


def decode(data: bytes) -> tuple[NDArray[np.float32], int]:
    """The mono samples of an audio file of any format, and their rate."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("flt", "mono", stream.rate)
        frames = [f for frame in container.decode(stream) for f in resampler.resample(frame)]
        frames += resampler.resample(None)
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]), stream.rate


def seconds(data: bytes, format: str) -> float:
    if format == "pcm":
        return len(data) / 2 / SAMPLE_RATE
    samples, rate = decode(data)
    return len(samples) / rate


def loudness(samples: NDArray[np.float32]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def tone(duration: float, hertz: float = 220, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(int(duration * rate)) / rate)).astype(np.float32)


def pitch(samples: NDArray[np.float32], rate: int = SAMPLE_RATE) -> float:
    """The strongest frequency, in hertz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size)))
    return float(np.argmax(spectrum) * rate / samples.size)
