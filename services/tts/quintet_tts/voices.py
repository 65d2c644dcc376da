"""A voice as the API lists it, and the choice of the voice that speaks a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Literal

import msgspec
from quintet_common.errors import ApiError

from quintet_tts.speech.scripts import Script, scripts_in


class Engine(StrEnum):
    """Who makes the sound."""

    HIBARI = "hibari"
    ESPEAK = "espeak-ng"
    KOKORO = "kokoro"
    PIPER = "piper"
    COSYVOICE = "cosyvoice"


_BY_TELLING = [script for script in Script if script not in (Script.HAN, Script.LATIN)] + [Script.HAN]
"""The scripts in the order in which they decide on a sentence's voice: Latin words are in sentences of every language,
Han characters in Japanese and Korean ones."""


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """One voice of a model.

    ``alias_of`` is the voice that really speaks. ``scripts`` are the writings that it reads; a voice with
    ``follows_text`` is an alias of several: it speaks each sentence with the voice for the sentence's script.
    """

    id: str
    name: str
    language: str
    """BCP 47, of the accent."""
    gender: Literal["female", "male"] | None
    """None when the voice does not say."""
    engine: str
    available: bool = True
    alias_of: str | None = None
    follows_text: bool = False
    note: str | None = None
    """What a person should know before choosing it."""
    scripts: frozenset[Script] = frozenset({Script.LATIN})
    speaker: str = ""
    """What the engine itself calls the voice."""


class Catalogue:
    """The voices of one model. ``by_script`` names the voice for each script, used where no voice was asked for."""

    def __init__(self, voices: Sequence[Voice], default: str, by_script: dict[Script, str]) -> None:
        self.voices = list(voices)
        self._by_id = {voice.id: voice for voice in voices}
        self._default = default
        self._by_script = by_script

    def check(self, voice_id: str | None, text: str) -> None:
        """What is wrong without a look at the sentences: a voice that is not known, or that was asked for by itself and
        cannot speak ``text``. Raises ApiError 400 as ``speakers`` does."""
        if voice_id is not None and not (asked := self._find(voice_id)).follows_text:
            self._check(self._real(asked), scripts_in(text), text)

    def cut(self, voice_id: str | None, pieces: Iterable[str]) -> Iterator[str]:
        """``pieces``, those in several writings that no one voice reads cut between words, so that each is spoken by
        its own voice. Pieces for a voice that was asked for by itself stay whole. Raises ApiError 400."""
        if voice_id is not None and not self._find(voice_id).follows_text:
            yield from pieces
            return
        for piece in pieces:
            yield from [piece] if self._reads(scripts_in(piece)) else self._runs(piece)

    def _reads(self, scripts: frozenset[Script]) -> bool:
        return any(scripts <= voice.scripts for voice in self.voices if voice.alias_of is None)

    def _runs(self, piece: str) -> list[str]:
        runs: list[list[str]] = []
        scripts: frozenset[Script] = frozenset()
        for word in re.findall(r"\S+\s*|\s+", piece):
            more = scripts_in(word)
            if runs and self._reads(scripts | more):
                runs[-1].append(word)
                scripts |= more
            else:
                runs.append([word])
                scripts = more
        return ["".join(run) for run in runs]

    def speakers(self, voice_id: str | None, text: str, pieces: Iterable[str]) -> Iterator[tuple[str, Voice]]:
        """Each piece of ``text`` with the voice that speaks it.

        Raises ApiError 400: an unknown voice, one whose engine is not installed, or one that cannot read the text.
        """
        asked = self._find(self._default if voice_id is None else voice_id)
        follows_text = voice_id is None or asked.follows_text
        everything = scripts_in(text)
        voice: Voice | None = None
        for piece in pieces:
            scripts = scripts_in(piece)
            if not follows_text:
                voice = self._real(asked)
            elif scripts or voice is None:
                voice = self._for_scripts(scripts or everything, japanese=Script.KANA in everything)
            self._check(voice, scripts, piece)
            yield piece, voice

    def _find(self, voice_id: str) -> Voice:
        voice = self._by_id.get(voice_id)
        if voice is None:
            names = ", ".join(voice.id for voice in self.voices)
            raise ApiError(
                400, f"Unknown voice {voice_id!r}. The voices are: {names}.", param="voice", code="unknown_voice"
            )
        return voice

    def _real(self, voice: Voice) -> Voice:
        return voice if voice.alias_of is None else self._by_id[voice.alias_of]

    def _for_scripts(self, scripts: frozenset[Script], japanese: bool) -> Voice:
        """The voice for a sentence's scripts. In a Japanese text Han is Japanese, if its voice reads it."""
        for script in _BY_TELLING:
            if script in scripts:
                voice = self._by_id[self._by_script.get(script, self._default)]
                if japanese and script is Script.HAN:
                    reader = self._by_id[self._by_script.get(Script.KANA, self._default)]
                    return reader if Script.HAN in reader.scripts else voice
                return voice
        return self._by_id[self._default]

    def _check(self, voice: Voice, scripts: frozenset[Script], piece: str) -> None:
        unread = scripts - voice.scripts
        if unread:
            able = [v.id for v in self.voices if scripts <= v.scripts and v.alias_of is None]
            names = ", ".join(sorted(script.value for script in unread))
            where = repr(_short(_first_of(unread, piece)))
            if able:
                message = f"The voice {voice.id!r} cannot read {names} characters, which are in {where}. "
                message += f"Voices that can: {', '.join(able)}."
            else:
                message = f"No one voice of this model can read {where}."
            raise ApiError(
                400,
                message,
                param="voice" if able else "input",
                code="voice_cannot_read",
            )
        if not voice.available:
            raise ApiError(
                400,
                f"The voice {voice.id!r} is spoken by {voice.engine}, which is not installed where this model runs: "
                "install the Python package espeakng-loader, or espeak-ng with the system's package manager.",
                param="voice",
                code="voice_unavailable",
            )


def _first_of(scripts: frozenset[Script], text: str) -> str:
    """``text`` from about where one of ``scripts`` comes first."""
    for start in range(0, len(text), 40):
        if scripts & scripts_in(text[start : start + 40]):
            return text[start:]
    return text


def _short(text: str) -> str:
    text = " ".join(text[:200].split())
    return text if len(text) <= 40 else text[:39] + "…"
