"""``embedded:hibari``: what speaks on a machine with nothing prepared. hibari for English, espeak-ng for the rest.

The names are those that people's code has already: CosyVoice's seven, OpenAI's, and the voice's own.
"""

from __future__ import annotations

import msgspec
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report

from quintet_tts.backends import Backend
from quintet_tts.backends.espeak import EspeakBackend
from quintet_tts.speech.scripts import Script
from quintet_tts.voices import Catalogue, Engine, Voice

# fmt: off
OPENAI_VOICES = [
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable",
    "marin", "nova", "onyx", "sage", "shimmer", "verse",
]
# fmt: on
"""As in OpenAI's reference."""

_BY_SCRIPT = {Script.HAN: "中文女", Script.KANA: "日语男", Script.HANGUL: "韩语女"}


def load(spec: ModelSpec, report: Report) -> tuple[Catalogue, dict[str, Backend]]:
    """The voices of ``spec`` and the engine of each by name. Raises LoadError."""
    if spec.embedded != "hibari":
        raise LoadError(f"{spec.path!r} is not a speech model that this version can load; there is 'embedded:hibari'.")
    try:
        from quintet_tts.backends.hibari import HibariBackend
    except ImportError as error:
        raise LoadError(
            f"{spec.path!r} needs the Python package {error.name!r}: install quintet-tts[embedded]."
        ) from None
    hibari, espeak = HibariBackend(report), EspeakBackend()
    return _catalogue(hibari.voices(), espeak.voices()), {Engine.HIBARI: hibari, Engine.ESPEAK: espeak}


def _catalogue(hibari: list[Voice], espeak: list[Voice]) -> Catalogue:
    heart = hibari[0]
    alias = msgspec.structs.replace(heart, alias_of=heart.id)
    woman = msgspec.structs.replace(alias, id="英文女", name="English woman", note="Not CosyVoice, whose name this is.")
    note = "Not OpenAI's voice of this name. Chinese, Japanese and Korean sentences are spoken by espeak-ng."
    readable = frozenset().union(*(voice.scripts for voice in espeak)) | heart.scripts
    openai = [
        msgspec.structs.replace(alias, id=name, name=name.capitalize(), follows_text=True, note=note, scripts=readable)
        for name in OPENAI_VOICES
    ]
    return Catalogue([heart, woman, *espeak, *openai], heart.id, _BY_SCRIPT)
