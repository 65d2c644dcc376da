"""One request being spoken: text in, encoded audio out, a chunk at a time."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping

from quintet_common.errors import ApiError, bad_request

from quintet_tts.backends import Backend, Instructable, Stoppable
from quintet_tts.protocol import Audio, Speak
from quintet_tts.speech import splitter
from quintet_tts.speech.encoders import Encoder, create_encoder
from quintet_tts.speech.joins import Joiner, pause_after
from quintet_tts.speech.reshape import SAMPLE_RATE, Samples, reshape
from quintet_tts.speech.scripts import speakable
from quintet_tts.speech.splitter import weight
from quintet_tts.speech.text import cleaned, spoken
from quintet_tts.voices import Catalogue, Voice

SLICE = 4000
"""Characters that are prepared at a time: a few milliseconds, after which others have their turn."""


class Speaking:
    """Iterate to speak; each step takes about one sentence's time. ``close`` ends it between two steps, ``stop`` (from
    another thread) within one where the engine can do that.

    Raises ApiError 400 at once for a text without a letter or a digit and for a voice that was named and cannot speak
    it; from ``prepare`` where a sentence has no voice, and for instructions that a voice cannot follow.
    """

    def __init__(self, request: Speak, catalogue: Catalogue, backends: Mapping[str, Backend]) -> None:
        text = cleaned(request.text)
        if not speakable(text):
            raise bad_request("The input has nothing to speak: no letter and no digit.", "input", "invalid_value")
        self._request = request
        catalogue.check(request.voice, text)
        self._backends = backends
        self._parts: list[tuple[str, Voice]] = []
        self._preparation = self._prepare(text, catalogue)
        self._stopped = False
        self._synthesis: Iterator[Samples] | None = None
        self._chunks = self._speak()

    def prepare(self) -> bool:
        """Find the pieces of the next SLICE characters and who speaks them; True when all of the text is prepared.

        Iterating does what is left of it. Raises ApiError 400.
        """
        return next(self._preparation, True)

    @property
    def engines(self) -> list[str]:
        """In the order in which they speak, once all is prepared."""
        return list(dict.fromkeys(voice.engine for _, voice in self._parts))

    def __iter__(self) -> Iterator[Audio]:
        return self._chunks

    def __next__(self) -> Audio:
        return next(self._chunks)

    def close(self) -> None:
        self.stop()
        self._chunks.close()

    def stop(self) -> None:
        """Nobody listens any more. What comes of the step that is under way is of no use."""
        self._stopped = True
        synthesis = self._synthesis  # the other thread may begin with the next piece at any time
        if isinstance(synthesis, Stoppable):
            synthesis.stop()

    def _check_instructions(self) -> None:
        deaf = [engine for engine in self.engines if not isinstance(self._backends[engine], Instructable)]
        if deaf:
            raise bad_request(
                f"This model cannot follow instructions ({', '.join(deaf)} speaks); leave the field out.",
                "instructions",
                "unsupported_parameter",
            )

    def _prepare(self, text: str, catalogue: Catalogue) -> Iterator[bool]:
        """Yields False between two slices."""
        pieces = catalogue.cut(self._request.voice, splitter.pieces(text))
        characters = 0
        for piece, voice in catalogue.speakers(self._request.voice, text, pieces):
            self._add(piece, voice)
            characters += len(piece)
            if characters >= SLICE:
                characters = 0
                yield False
        if self._request.instructions is not None:
            self._check_instructions()

    def _add(self, piece: str, voice: Voice) -> None:
        """After the first piece, short ones of an engine that is slow to begin become one."""
        last, same = self._parts[-1] if len(self._parts) > 1 else ("", None)
        limit = self._backends[voice.engine].joins_up_to
        together = limit > 0 and same == voice and not last.endswith("\n")
        if together and weight(last) + weight(piece) <= limit:
            self._parts[-1] = (last + piece, voice)
        else:
            self._parts.append((piece, voice))

    def _speak(self) -> Generator[Audio]:
        encoder = create_encoder(self._request.format)
        try:
            yield from self._encoded(encoder)
        finally:
            encoder.close()

    def _encoded(self, encoder: Encoder) -> Iterator[Audio]:
        while not self.prepare():
            pass
        # Of the input, in which some characters were more, and others fewer, than what is spoken for them.
        uncounted, characters = len(self._request.text), 0
        joiner = Joiner()
        heard = False
        clock = time.perf_counter()
        for index, (piece, voice) in enumerate(self._parts):
            if self._stopped:
                return
            characters += min(uncounted, len(piece))
            uncounted -= min(uncounted, len(piece))
            pause = pause_after(piece) / self._request.speed
            for samples in joiner.piece(self._sound(index, piece, voice), pause):
                data = encoder.encode(samples)
                yield Audio(data, samples.size / SAMPLE_RATE, characters, time.perf_counter() - clock)
                # The time between two steps is other requests' time.
                heard, characters, clock = True, 0, time.perf_counter()
        if self._stopped:
            return
        if not heard:
            raise ApiError(400, "The voice has no sound for this input.", param="input", code="invalid_value")
        silence = joiner.finish()
        data = encoder.encode(silence) + encoder.finish()
        yield Audio(data, silence.size / SAMPLE_RATE, characters + uncounted, time.perf_counter() - clock)

    def _sound(self, index: int, piece: str, voice: Voice) -> Iterator[Samples]:
        backend, speed = self._backends[voice.engine], self._request.speed
        native = min(max(speed, backend.min_speed), backend.max_speed)
        # A seed of its own for each piece: the sound depends neither on other requests nor on the thread.
        seed = None if self._request.seed is None else [self._request.seed, index]
        if self._request.instructions is not None and isinstance(backend, Instructable):
            chunks = backend.instructed(spoken(piece), voice, native, seed, self._request.instructions)
        else:
            chunks = backend.synthesize(spoken(piece), voice, native, seed)
        self._synthesis = chunks
        if self._stopped:  # between the two lines above, too
            return
        yield from reshape(chunks, backend.sample_rate, speed / native)
