"""Pieces of speech end to end: their own silence is cut away, a pause of the right length put between, no clicks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from quintet_tts.speech.reshape import SAMPLE_RATE, Samples

SILENCE = 0.003
"""Absolute sample value, -50 dBFS: below it is breath and noise."""

LEAD = int(0.03 * SAMPLE_RATE)
"""Samples kept before the first sound: the soft start of a consonant."""

TAIL = int(0.08 * SAMPLE_RATE)
"""Samples kept after the last sound: what rings out."""

FADE = int(0.005 * SAMPLE_RATE)

NOTHING: Samples = np.zeros(0, np.float32)

PARAGRAPH, SENTENCE, CLAUSE, NONE = 0.6, 0.35, 0.15, 0.02
"""Pauses in seconds at pace 1, the kept TAIL included."""


def pause_after(piece: str) -> float:
    """How long a speaker pauses after this piece of text, in seconds at pace 1."""
    if "\n" in piece[len(piece.rstrip()) :]:
        return PARAGRAPH
    end = piece.rstrip().rstrip("\"'”’»）)」』】》〉]")[-1:]
    if end in ".!?…。！？｡；\u0964\u0965\u061f\u06d4":
        return SENTENCE
    return CLAUSE if end in ",;:，、：—–\u060c\u061b" else NONE


class Joiner:
    """The pieces of one answer, one after the other."""

    def __init__(self) -> None:
        self._ending = NOTHING

    def piece(self, chunks: Iterable[Samples], pause: float) -> Iterator[Samples]:
        """``chunks`` of a piece with its outer silence replaced: LEAD before, ``pause`` seconds after the last sound.

        Yields as the chunks come, holding back only silence, which may turn out to be the end. The pause goes out with
        the next piece's first sound: alone it would cost as much on its way as a sentence. Nothing for mere silence.
        """
        held = NOTHING
        started = False
        for chunk in chunks:
            held = np.concatenate([held, chunk]) if held.size else chunk
            loud = np.flatnonzero(np.abs(held) > SILENCE)
            if not loud.size:
                if not started:
                    held = held[-LEAD:]
                continue
            begin = 0 if started else max(0, int(loud[0]) - LEAD)
            end = int(loud[-1]) + 1
            # Copies, so that a stream that waits for its turn does not keep the whole sentence.
            sound, held = held[begin:end].copy(), held[end:].copy()
            del chunk
            if not started:
                ramp = min(FADE, sound.size)
                sound[:ramp] *= np.linspace(0, 1, ramp, dtype=np.float32)
                sound = np.concatenate([self.finish(), sound])
            started = True
            yield sound
        if started:
            self._ending = _ending(held, pause)

    def finish(self) -> Samples:
        """The pause behind the last piece, unless it has gone out already."""
        ending, self._ending = self._ending, NOTHING
        return ending


def _ending(held: Samples, pause: float) -> Samples:
    """What rings out, faded, then silence to the length of the pause."""
    tail = held[:TAIL].copy()
    if tail.size:
        tail *= np.linspace(1, 0, tail.size, dtype=np.float32)
    silence = max(0, int(pause * SAMPLE_RATE) - tail.size)
    return np.concatenate([tail, np.zeros(silence, np.float32)])
