"""Piper's voices: a ``.onnx`` file with a ``.onnx.json`` beside it, run by onnxruntime.

Piper's own program is GPL-3 and is not used. Its phonemes are espeak-ng's, which is GPL-3 too and runs in a process of
its own. The voices have licences of their own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report

from quintet_tts.backends.onnx import session
from quintet_tts.backends.phonemes import Phonemizer
from quintet_tts.speech.reshape import Samples
from quintet_tts.speech.scripts import scripts_of_language
from quintet_tts.voices import Catalogue, Engine, Voice

_PAD, _BEGIN, _END = "_", "^", "$"


class _Inference(msgspec.Struct, frozen=True):
    noise_scale: float = 0.667
    length_scale: float = 1.0
    noise_w: float = 0.8


class _Audio(msgspec.Struct, frozen=True):
    sample_rate: int


class _Espeak(msgspec.Struct, frozen=True):
    voice: str = "en-us"


class _Config(msgspec.Struct, frozen=True):
    """What is read of a voice's ``.onnx.json``."""

    audio: _Audio
    phoneme_id_map: dict[str, list[int]]
    espeak: _Espeak = _Espeak()
    phoneme_type: str = "espeak"
    inference: _Inference = _Inference()
    num_speakers: int = 1
    speaker_id_map: dict[str, int] = {}


def find(path: Path) -> Path | None:
    """The voice file that ``path`` is, or has in it; None when there is none or more than one."""
    found = [path] if path.is_file() else sorted(path.glob("*.onnx")) if path.is_dir() else []
    voices = [file for file in found if file.with_name(file.name + ".json").is_file()]
    return voices[0] if len(voices) == 1 else None


def load(spec: ModelSpec, report: Report) -> tuple[Catalogue, dict[str, PiperBackend]]:
    """The voice in the file or folder of ``spec``. Raises LoadError."""
    file = find(Path(spec.path))
    if file is None:
        raise LoadError(f"{spec.path}: there is not exactly one Piper voice, a NAME.onnx and a NAME.onnx.json.")
    report(0.2, "loading the voice")
    backend = PiperBackend(file)
    voices = backend.voices()
    return Catalogue(voices, voices[0].id, {}), {Engine.PIPER: backend}


class PiperBackend:
    """One voice file, maybe of several speakers. Shared by all threads; each call computes on its own."""

    min_speed = 0.5
    max_speed = 2.0
    joins_up_to = 0

    def __init__(self, file: Path) -> None:
        """Raises LoadError for files that are no voice."""
        try:
            self._config = msgspec.json.decode(file.with_name(file.name + ".json").read_bytes(), type=_Config)
        except (OSError, msgspec.MsgspecError) as error:
            raise LoadError(f"{file}.json: {error}.") from None
        self.sample_rate = self._config.audio.sample_rate
        self._name = file.name.removesuffix(".onnx")
        self._phonemes = _phonemes_of(self._config, file)
        try:
            self._session = session(str(file))
        except Exception as error:
            raise LoadError(f"{file}: onnxruntime cannot load it: {str(error).splitlines()[0]}") from None
        self._with_speaker = any(each.name == "sid" for each in self._session.get_inputs())

    def voices(self) -> list[Voice]:
        language = self._config.espeak.voice
        names = sorted(self._config.speaker_id_map, key=self._config.speaker_id_map.__getitem__)
        ids = [f"{self._name}/{name}" for name in names] if self._with_speaker and names else [self._name]
        return [
            Voice(
                id=each,
                name=each,
                language=language,
                gender=None,
                engine=Engine.PIPER,
                speaker=each.removeprefix(self._name).removeprefix("/"),
                scripts=scripts_of_language(language),
            )
            for each in ids
        ]

    def synthesize(self, text: str, voice: Voice, speed: float, seed: list[int] | None) -> Iterator[Samples]:
        """With a seed the voice speaks without its chance, because its network takes no seed: every seed is one."""
        ids = self._ids(self._phonemes(text))
        if not ids:
            return
        usual = self._config.inference
        chance = (usual.noise_scale, usual.noise_w) if seed is None else (0.0, 0.0)
        feeds: dict[str, Any] = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([chance[0], usual.length_scale / speed, chance[1]], np.float32),
        }
        if self._with_speaker:
            feeds["sid"] = np.array([self._config.speaker_id_map.get(voice.speaker, 0)], np.int64)
        sound: Samples = self._session.run(None, feeds)[0].reshape(-1)
        yield sound

    def _ids(self, phonemes: str) -> list[int]:
        """The voice's numbers for phonemes, each followed by the padding it was trained with; empty for none."""
        table = self._config.phoneme_id_map
        known = [table[each] for each in unicodedata.normalize("NFD", phonemes) if each in table]
        if not known:
            return []
        pad = table.get(_PAD, [])
        ids = [*table.get(_BEGIN, []), *pad]
        for each in known:
            ids += [*each, *pad]
        return ids + table.get(_END, [])


def _phonemes_of(config: _Config, file: Path) -> Callable[[str], str]:
    if config.phoneme_type == "text":
        return str.casefold
    if config.phoneme_type == "espeak":
        return Phonemizer(config.espeak.voice)
    raise LoadError(f"{file}.json: phonemes of the type {config.phoneme_type!r} are not supported.")
