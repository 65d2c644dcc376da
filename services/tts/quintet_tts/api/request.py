"""The body of ``POST /audio/speech``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from quintet_tts.protocol import Format, Speak

MAX_CHARACTERS = 200_000
"""Of one input: more than three hours of sound. OpenAI's own limit is 4096."""

MAX_WHOLE_CHARACTERS = 20_000
"""Of one whose sound is kept until it is whole: about twenty minutes."""


class VoiceId(BaseModel):
    id: str


class SpeechRequest(BaseModel):
    """OpenAI's fields, and ``seed``."""

    input: str
    """The text to speak."""
    model: str | None = None
    """A model of ``/v1/models``; the default speech model without it."""
    voice: str | VoiceId | None = None
    """A voice of ``/v1/audio/voices``; without it the language of the text chooses."""
    instructions: str | None = None
    """How to speak, in words. A model that cannot follow them refuses."""
    response_format: Format | None = None
    """mp3 by default; wav on the path without ``/v1``."""
    speed: float | None = Field(default=None, ge=0.25, le=4, strict=True)
    stream_format: Literal["audio", "sse"] | None = None
    seed: int | None = Field(default=None, ge=0, lt=1 << 64, strict=True)
    """The same seed, text and voice give the same sound."""

    @field_validator("input")
    @classmethod
    def _has_a_length(cls, value: str) -> str:
        if not value:
            raise ValueError("it is empty")
        if len(value) > MAX_CHARACTERS:
            raise ValueError(f"it has {len(value)} characters and the limit is {MAX_CHARACTERS}")
        return value

    def as_work(self, default_format: Format) -> Speak:
        """What the worker is asked."""
        return Speak(
            text=self.input,
            voice=self.voice.id if isinstance(self.voice, VoiceId) else self.voice,
            format=self.response_format or default_format,
            speed=1.0 if self.speed is None else self.speed,
            seed=self.seed,
            instructions=(self.instructions or "").strip() or None,
        )
