"""What each audio library costs per second of sound, and how much it takes to install: run by run.py.

Speech-like noise at 24 kHz in pieces of a sentence, mono, one thread, medians of CPU milliseconds.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from importlib.metadata import distribution
from statistics import median
from typing import Any

import av
import lameenc
import numpy as np
import soundfile

RATE, SECONDS, PIECES = 24000, 20, 10


def speech() -> list[Any]:
    """Vowels of three formants under a slow envelope: as rich as speech, so that encoders have as much to do."""
    at = np.arange(RATE * SECONDS) / RATE
    source = np.sign(np.sin(2 * np.pi * 120 * at + np.sin(3 * at))) * 0.3
    noise = np.random.default_rng(0).standard_normal(at.size) * 0.02
    sound = (source + noise) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * at))
    smooth = np.convolve(sound, np.hanning(9) / 4, "same").astype(np.float32)
    return np.array_split(smooth * 0.8, PIECES)


def pyav(container: str, codec: str, bit_rate: int | None, **options: str) -> Callable[[list[Any]], int]:
    def encode(pieces: list[Any]) -> int:
        sink = io.BytesIO()
        with av.open(sink, "w", format=container) as out:
            stream = out.add_stream(codec, rate=RATE, options=options)
            stream.layout = "mono"
            if bit_rate:
                stream.bit_rate = bit_rate
            resampler = av.AudioResampler(stream.codec_context.format, "mono", RATE)
            for piece in [*pieces, None]:
                frame = None
                if piece is not None:
                    frame = av.AudioFrame.from_ndarray(piece.reshape(1, -1), format="flt", layout="mono")
                    frame.sample_rate = RATE
                for converted in resampler.resample(frame):
                    out.mux(stream.encode(converted))
            out.mux(stream.encode(None))
            return sink.tell()

    return encode


def lame(quality: int) -> Callable[[list[Any]], int]:
    def encode(pieces: list[Any]) -> int:
        encoder = lameenc.Encoder()
        encoder.set_bit_rate(64)
        encoder.set_in_sample_rate(RATE)
        encoder.set_channels(1)
        encoder.set_quality(quality)
        encoder.silence()
        size = sum(len(encoder.encode((piece * 32767).astype("<i2").tobytes())) for piece in pieces)
        return size + len(encoder.flush())

    return encode


def sndfile(kind: str, subtype: str) -> Callable[[list[Any]], int]:
    def encode(pieces: list[Any]) -> int:
        sink = io.BytesIO()
        with soundfile.SoundFile(sink, "w", RATE, 1, format=kind, subtype=subtype) as out:
            for piece in pieces:
                out.write(piece)
        return sink.tell()

    return encode


ENCODERS = {
    "mp3, PyAV, level 7": pyav("mp3", "libmp3lame", 64_000, compression_level="7"),
    "mp3, PyAV, its default": pyav("mp3", "libmp3lame", 64_000),
    "mp3, lameenc, quality 7 (ours)": lame(7),
    "mp3, lameenc, quality 2": lame(2),
    "mp3, soundfile": sndfile("MP3", "MPEG_LAYER_III"),
    "opus, PyAV, level 3 (ours)": pyav("ogg", "libopus", 32_000, compression_level="3"),
    "opus, PyAV, its default": pyav("ogg", "libopus", 32_000),
    "opus, soundfile": sndfile("OGG", "OPUS"),
    "aac, PyAV, fast coder (ours)": pyav("adts", "aac", 64_000, aac_coder="fast"),
    "aac, PyAV, its default": pyav("adts", "aac", 64_000),
    "flac, PyAV (ours)": pyav("flac", "flac", None),
    "flac, soundfile": sndfile("FLAC", "PCM_16"),
}


def installed_megabytes(name: str) -> float:
    files = [file.locate() for file in distribution(name).files or []]
    return sum(file.stat().st_size for file in files if file.exists()) / 1e6  # type: ignore[attr-defined]


def main() -> None:
    pieces = speech()
    times: dict[str, list[float]] = {name: [] for name in ENCODERS}
    sizes = {}
    for _ in range(7):
        for name, encode in ENCODERS.items():
            begun = time.process_time()
            sizes[name] = encode(pieces)
            times[name].append((time.process_time() - begun) / SECONDS * 1000)
    print("| format, library | CPU ms per second of sound | kbit/s |\n|---|---|---|")
    for name, found in times.items():
        print(f"| {name} | {median(found):.2f} | {sizes[name] * 8 / SECONDS / 1000:.0f} |")
    names = ("av", "lameenc", "soundfile")
    print("\nInstalled: " + ", ".join(f"{name} {installed_megabytes(name):.0f} MB" for name in names) + ".")


if __name__ == "__main__":
    main()
