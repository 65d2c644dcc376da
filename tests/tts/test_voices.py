"""The embedded model's voices: who is offered, who speaks what, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openai.types.audio.speech_create_params import Voice as OpenAIVoice
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_tts.backends import embedded, loading
from quintet_tts.speech.scripts import Script
from quintet_tts.voices import Catalogue, Engine

COSYVOICE = {"中文女", "中文男", "日语男", "粤语女", "英文女", "英文男", "韩语女"}


@pytest.fixture(scope="module")
def catalogue(model: Any) -> Catalogue:
    return model[0]  # type: ignore[no-any-return]


def speakers(catalogue: Catalogue, voice: str | None, *pieces: str) -> list[str]:
    return [chosen.id for _, chosen in catalogue.speakers(voice, "".join(pieces), pieces)]


def test_every_name_that_peoples_code_has_is_a_voice(catalogue: Catalogue) -> None:
    openai_names = set(OpenAIVoice.__args__[1].__args__)  # type: ignore[attr-defined]
    assert {voice.id for voice in catalogue.voices} == COSYVOICE | openai_names | {"heart", "ru", "el", "ar", "hi"}


def test_a_borrowed_name_says_who_really_speaks(catalogue: Catalogue) -> None:
    for voice in catalogue.voices:
        if voice.id != "heart":
            assert voice.note
            assert (voice.engine == Engine.ESPEAK) == (voice.alias_of is None)
            assert voice.alias_of in (None, "heart")


@pytest.mark.parametrize(
    ("voice", "pieces", "chosen"),
    [
        (None, ["Hello."], ["heart"]),
        (None, ["你好。", "Hello.", "123。"], ["中文女", "heart", "heart"]),
        (None, ["12。", "你好。"], ["中文女", "中文女"]),
        (None, ["ありがとう。", "안녕."], ["日语男", "韩语女"]),
        ("alloy", ["Hello.", "你好。"], ["heart", "中文女"]),
        ("英文女", ["Hello."], ["heart"]),
        ("heart", ["123"], ["heart"]),
        ("粤语女", ["你好。", "Hello."], ["粤语女", "粤语女"]),
        (None, ["天气好。", "いい。"], ["中文女", "日语男"]),
        (None, ["Привет, GPU.", "Καλημέρα.", "السلام عليكم.", "नमस्ते।"], ["ru", "el", "ar", "hi"]),
    ],
)
def test_who_speaks(catalogue: Catalogue, voice: str | None, pieces: list[str], chosen: list[str]) -> None:
    assert speakers(catalogue, voice, *pieces) == chosen


@pytest.mark.parametrize(
    ("voice", "piece", "code", "said"),
    [
        ("nobody", "Hello.", "unknown_voice", "heart, 英文女, 中文女"),
        ("heart", "I love 北京.", "voice_cannot_read", "Voices that can: 中文女, 中文男, 粤语女"),
        ("英文男", "你好", "voice_cannot_read", "Chinese (Han)"),
        ("日语男", "日本", "voice_cannot_read", "Chinese (Han)"),
        (None, "日本はいい", "voice_cannot_read", "No one voice of this model can read '日本はいい'"),
        (None, "สวัสดี", "voice_cannot_read", "No one voice of this model can read 'สวัสดี'"),
    ],
)
def test_what_is_refused(catalogue: Catalogue, voice: str | None, piece: str, code: str, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        speakers(catalogue, voice, piece)
    param = "input" if said.startswith("No one voice") else "voice"
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert said in caught.value.message


def test_a_sentence_in_several_writings_is_cut_between_words(catalogue: Catalogue) -> None:
    sentence = "Hello 你好 안녕 GPU. "
    assert list(catalogue.cut(None, ["One two. ", sentence])) == ["One two. ", "Hello 你好 ", "안녕 GPU. "]
    assert speakers(catalogue, None, *catalogue.cut(None, [sentence])) == ["中文女", "韩语女"]
    assert list(catalogue.cut("heart", [sentence])) == [sentence]
    assert list(catalogue.cut("alloy", ["สวัสดี안녕"])) == ["สวัสดี안녕"]


def test_what_a_named_voice_cannot_read_is_found_in_a_long_text(catalogue: Catalogue) -> None:
    catalogue.check("heart", "All is well. " * 1000)
    catalogue.check(None, "你好")
    with pytest.raises(ApiError, match="北京"):
        catalogue.check("heart", "All is well. " * 1000 + "I love 北京.")


def test_japanese_with_kanji_is_for_a_voice_that_reads_them(catalogue: Catalogue) -> None:
    able = [
        msgspec.structs.replace(voice, scripts=voice.scripts | {Script.HAN}) if voice.id == "日语男" else voice
        for voice in catalogue.voices
    ]
    assert speakers(Catalogue(able, "heart", embedded._BY_SCRIPT), None, "天气好。", "いい。") == ["日语男", "日语男"]


def test_a_voice_whose_engine_is_missing_says_what_to_install(catalogue: Catalogue) -> None:
    without = [
        msgspec.structs.replace(voice, available=False) if voice.engine == Engine.ESPEAK else voice
        for voice in catalogue.voices
    ]
    bare = Catalogue(without, "heart", embedded._BY_SCRIPT)
    assert speakers(bare, None, "Hello.") == ["heart"]
    for voice, text in (("中文女", "你好"), (None, "你好"), ("英文男", "Hello")):
        with pytest.raises(ApiError, match="espeakng-loader") as caught:
            speakers(bare, voice, text)
        assert (caught.value.status, caught.value.code) == (400, "voice_unavailable")


def test_a_model_that_is_not_known_is_refused_for_good() -> None:
    spec = ModelSpec(id="x", kind="tts", path="embedded:parrot")
    with pytest.raises(LoadError, match="parrot"):
        loading.load(spec, lambda _fraction, _note: None)
