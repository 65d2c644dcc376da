"""Sound to bytes, as it comes: one encoder object per answer.

PCM and WAV by hand, MP3 by LAME itself, which takes a third of what FFmpeg takes around it, the rest by FFmpeg through
PyAV. `make bench-tts` has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import av
import lameenc
import numpy as np

from quintet_tts.protocol import Format
from quintet_tts.speech.reshape import SAMPLE_RATE, Samples
from quintet_tts.wav import wav_header


class Encoder(Protocol):
    """``encode`` and ``finish`` return what is ready to be sent, maybe nothing. ``close`` frees what it holds."""

    def encode(self, samples: Samples) -> bytes: ...

    def finish(self) -> bytes: ...

    def close(self) -> None: ...


class PcmEncoder:
    """Little-endian int16 without a header; with one for WAV."""

    def __init__(self, header: bytes = b"") -> None:
        self._pending = header

    def encode(self, samples: Samples) -> bytes:
        head, self._pending = self._pending, b""
        return head + _int16(samples)

    def finish(self) -> bytes:
        return self._pending

    def close(self) -> None:
        pass


class LameEncoder:
    """MP3: bare frames, which any player can begin anywhere; an info frame at the start would state a wrong length."""

    def __init__(self) -> None:
        self._lame = lameenc.Encoder()
        self._lame.silence()
        self._lame.set_channels(1)
        self._lame.set_in_sample_rate(SAMPLE_RATE)
        self._lame.set_bit_rate(MP3_KBPS)
        self._lame.set_quality(LAME_QUALITY)
        self._begun = False

    def encode(self, samples: Samples) -> bytes:
        self._begun = True
        return bytes(self._lame.encode(_int16(samples)))

    def finish(self) -> bytes:
        return bytes(self._lame.flush()) if self._begun else b""

    def close(self) -> None:
        pass


MP3_KBPS = 64
LAME_QUALITY = 7
"""From 0, the slowest, to 9: this one costs a quarter of 2, for a difference that speech does not show."""


def _int16(samples: Samples) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


@dataclass(frozen=True)
class Codec:
    """How FFmpeg writes one format. Rates suit speech in mono at 24 kHz."""

    container: str
    codec: str
    bit_rate: int | None = None
    muxer: dict[str, str] = field(default_factory=dict)
    encoder: dict[str, str] = field(default_factory=dict)


# AAC is bare frames, too. What is set of the encoders takes a third of what FFmpeg's own choices take; speech comes out
# as near to the original (AAC nearer).
CODECS: dict[str, Codec] = {
    "opus": Codec("ogg", "libopus", 32_000, {"page_duration": "100000"}, {"compression_level": "3"}),
    "aac": Codec("adts", "aac", 64_000, encoder={"aac_coder": "fast"}),
    "flac": Codec("flac", "flac"),
}


class _Sink:
    """What PyAV writes to: not seekable, so that nothing sent is ever changed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


class AvEncoder:
    """Any of CODECS."""

    def __init__(self, codec: Codec) -> None:
        self._sink = _Sink()
        self._container = av.open(
            self._sink, "w", format=codec.container, options={"flush_packets": "1", **codec.muxer}
        )
        self._stream = self._container.add_stream(codec.codec, rate=SAMPLE_RATE, options=codec.encoder)
        self._stream.layout = "mono"
        if codec.bit_rate is not None:
            self._stream.bit_rate = codec.bit_rate
        self._resampler = av.AudioResampler(self._stream.codec_context.format, "mono", SAMPLE_RATE)
        self._position = 0

    def encode(self, samples: Samples) -> bytes:
        frame = av.AudioFrame.from_ndarray(np.clip(samples, -1, 1).reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.time_base = Fraction(1, SAMPLE_RATE)
        frame.pts = self._position
        self._position += samples.size
        self._mux(frame)
        return self._sink.take()

    def finish(self) -> bytes:
        if self._position:
            self._mux(None)
            self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()

    def close(self) -> None:
        self._container.close()

    def _mux(self, frame: av.AudioFrame | None) -> None:
        for converted in self._resampler.resample(frame):
            self._container.mux(self._stream.encode(converted))


def create_encoder(format: Format) -> Encoder:
    if format == "mp3":
        return LameEncoder()
    if format in CODECS:
        return AvEncoder(CODECS[format])
    return PcmEncoder(wav_header(SAMPLE_RATE) if format == "wav" else b"")
