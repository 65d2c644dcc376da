"""Kokoro: its folder, the numbers that the network gets, and the Japanese voices where the wheels are installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_tts.backends import kokoro, loading
from quintet_tts.backends.kokoro import MAX_PHONEMES, KokoroBackend, Parts
from quintet_tts.protocol import Speak
from quintet_tts.speech.scripts import Script
from quintet_tts.speech.speaking import Speaking
from quintet_tts.voices import Engine

installed = pytest.mark.skipif(not kokoro.in_wheels(), reason="the wheels of quintet-tts[kokoro] are not installed")
VOCABULARY = {"h": 50, "ə": 83, "l": 54, "ˈ": 156, "o": 57, "ʊ": 135}
STYLES = {
    name: np.arange(510, dtype=np.float32).reshape(510, 1, 1).repeat(256, 2) for name in ("af_heart", "bm_x", "zf_y")
}


class Network:
    """Where onnxruntime's session stands: keeps what it was given."""

    def __init__(self, **types: str) -> None:
        self.types = types or {"tokens": "tensor(int64)", "style": "tensor(float)", "speed": "tensor(float)"}
        self.fed: list[dict[str, Any]] = []

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, type=kind) for name, kind in self.types.items()]

    def run(self, _outputs: None, feeds: dict[str, Any]) -> list[Any]:
        self.fed.append(feeds)
        return [np.full(2400, 0.25, np.float32)]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    pytest.importorskip("espeakng_loader")
    made = Network()
    monkeypatch.setattr(kokoro, "session", lambda _model: made)
    return made


def write(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"not a network")
    (folder / "config.json").write_text(json.dumps({"vocab": VOCABULARY, "n_token": 178}))
    with (folder / "voices-v1.0.bin").open("wb") as file:
        np.savez(file, **STYLES)


def test_a_sentence_becomes_tokens_and_the_style_for_its_length(network: Network) -> None:
    backend = KokoroBackend(Parts(b"", STYLES, VOCABULARY))
    american, british = backend.voices()
    assert (american.id, american.name, american.language, american.gender) == ("af_heart", "Heart", "en-US", "female")
    assert (british.language, british.gender) == ("en-GB", "male")
    (sound,) = backend.synthesize("hello", american, 2.0, None)
    assert sound.shape == (2400,)
    (fed,) = network.fed
    assert fed["tokens"].tolist() == [[0, 50, 83, 54, 156, 57, 135, 0]]
    assert fed["style"].shape == (1, 256)
    assert fed["style"][0, 0] == 5
    assert fed["speed"].tolist() == [2.0]


def test_more_phonemes_than_the_model_reads_are_several_runs(network: Network) -> None:
    backend = KokoroBackend(Parts(b"", STYLES, VOCABULARY))
    backend._phonemizers["en-US"] = lambda _text: "h" * (MAX_PHONEMES + 1)
    assert len(list(backend.synthesize("x", backend.voices()[0], 1.0, None))) == 2
    assert [fed["tokens"].size for fed in network.fed] == [MAX_PHONEMES + 2, 3]


def test_other_exports_name_and_type_their_inputs_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    network = Network(input_ids="tensor(int64)", style="tensor(float)", speed="tensor(int32)")
    monkeypatch.setattr(kokoro, "session", lambda _model: network)
    backend = KokoroBackend(Parts(b"", STYLES, VOCABULARY))
    list(backend.synthesize("hello", backend.voices()[0], 1.0, None))
    assert network.fed[0]["input_ids"].size == 8
    assert network.fed[0]["speed"].dtype == np.int32


@pytest.mark.usefixtures("network")
def test_a_folder_is_recognised_and_speaks(tmp_path: Path) -> None:
    write(tmp_path)
    spec = ModelSpec(id="x", kind="tts", path=str(tmp_path))
    catalogue, backends = loading.load(spec, lambda _fraction, _note: None)
    assert list(backends) == [Engine.KOKORO]
    assert [voice.id for voice in catalogue.voices] == ["af_heart", "bm_x"]
    assert sum(each.seconds for each in Speaking(Speak(text="Hello.", format="mp3"), catalogue, backends)) > 0.1


@pytest.mark.parametrize(("missing", "says"), [("config.json", "config.json"), ("model.onnx", "one .onnx file")])
def test_a_folder_that_is_not_whole(tmp_path: Path, missing: str, says: str) -> None:
    write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(LoadError, match=says):
        kokoro.read_folder(tmp_path)


def test_damaged_files_are_said_in_one_line(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(LoadError, match="onnxruntime cannot load it") as caught:
        loading.load(ModelSpec(id="x", kind="tts", path=str(tmp_path)), lambda _fraction, _note: None)
    assert "\n" not in str(caught.value)
    (tmp_path / "voices-v1.0.bin").write_bytes(b"junk")
    with pytest.raises(LoadError, match="cannot be read"):
        kokoro.read_folder(tmp_path)


def test_without_the_wheels_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kokoro, "in_wheels", lambda: False)
    with pytest.raises(LoadError, match=r"services/tts\[kokoro\]"):
        loading.load(ModelSpec(id="x", kind="tts", path="embedded:kokoro"), lambda _fraction, _note: None)


@installed
def test_japanese_with_kanji() -> None:
    spec = ModelSpec(id="x", kind="tts", path="embedded:kokoro")
    catalogue, backends = loading.load(spec, lambda _fraction, _note: None)
    assert [voice.id for voice in catalogue.voices][-1] == "jm_kumo"
    assert {Script.HAN, Script.KANA} <= catalogue.voices[-1].scripts

    def seconds(speed: float) -> float:
        request = Speak(text="今日は良い天気です。", voice="jm_kumo", format="pcm", speed=speed)
        return sum(audio.seconds for audio in Speaking(request, catalogue, backends))

    assert 1 < seconds(1.0) < 4
    assert seconds(4.0) < seconds(1.0) / 2 < seconds(0.25) / 6


@installed
def test_the_japanese_man_of_the_default_model_is_kokoro() -> None:
    spec = ModelSpec(id="x", kind="tts", path="embedded:hibari")
    catalogue, _ = loading.load(spec, lambda _fraction, _note: None)
    voices = {voice.id: voice for voice in catalogue.voices}
    assert voices["日语男"].engine == "kokoro"
    assert [voice.engine for _, voice in catalogue.speakers(None, "日本語です。", ["日本語です。"])] == ["kokoro"]
