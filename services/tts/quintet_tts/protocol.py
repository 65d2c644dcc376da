"""What the speech API and a speech worker say to each other: text and a voice in, encoded audio out.

For each Speak the worker emits one Started, then Audio until the text is spoken; for a ListVoices one Voices.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from quintet_tts.voices import Voice

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


class Speak(msgspec.Struct, kw_only=True, tag="speak"):
    """One request to speak."""

    text: str
    voice: str | None = None
    """A voice id; None lets the text's script choose."""
    format: Format
    speed: float = 1.0
    """0.25 to 4; 1 is the voice's own pace."""
    seed: int | None = None
    instructions: str | None = None
    """How to speak, for models that can be told."""


class ListVoices(msgspec.Struct, tag="voices"):
    pass


Request = Speak | ListVoices


class Started(msgspec.Struct, tag="started"):
    """The request has left the queue."""

    queue_seconds: float
    engines: list[str]
    """The engines that will speak, in the order of their first sentence."""


class Audio(msgspec.Struct, tag="audio"):
    """A piece of the answer. The pieces of one request, joined, are one file of the asked format."""

    data: bytes
    seconds: float
    """Of sound in this piece."""
    characters: int
    """Of the input that this piece brings to an end."""
    busy_seconds: float
    """What synthesis and encoding of this piece took."""


class Voices(msgspec.Struct, tag="voices"):
    voices: list[Voice]


Event = Started | Audio | Voices
