"""OpenAI's speech API as its own SDK uses it, on the real model."""

from __future__ import annotations

import base64
import io
import json
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai.types.audio.speech_create_params import SpeechCreateParams
from quintet_tts.api.request import MAX_CHARACTERS, SpeechRequest
from quintet_tts.api.speech import MEDIA_TYPES
from tts.sound import seconds

TEXT = "Hello there. My name is Heart. I speak as fast as I can. Good bye."
CHINESE = "有时,我会静静地坐在庭院里,看着落叶飘飞,感慨万千。"


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_each_format(client: openai.OpenAI, format: Any) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format=format)
    assert answer.response.headers["content-type"] == MEDIA_TYPES[format]
    assert answer.response.headers["x-quintet-engine"] == "hibari"
    assert 3 < seconds(answer.content, format) < 12


def test_mp3_is_the_default_of_v1(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(model="hibari", voice="nova", input="Hello.")
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert answer.content[:1] == b"\xff"


def test_the_first_sound_comes_before_the_last_is_made(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=TEXT * 20, response_format="pcm"
    ) as answer:
        assert answer.headers["transfer-encoding"] == "chunked"
        chunks = list(answer.iter_bytes())
    assert len(chunks) > 20


def test_sse(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=TEXT, response_format="pcm", stream_format="sse"
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    sound = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["input_tokens"] == usage["characters"] == len(TEXT)
    assert usage["audio_seconds"] == pytest.approx(len(sound) / 48000, abs=0.001)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_voice_by_its_id(client: openai.OpenAI) -> None:
    assert client.audio.speech.create(model="tts-1", voice={"id": "heart"}, input="Hello.").content


def test_a_seed_makes_it_repeatable(client: openai.OpenAI) -> None:
    def heard() -> bytes:
        return client.audio.speech.create(
            model="tts-1", voice="heart", input="Again.", response_format="flac", extra_body={"seed": 3}
        ).content

    assert heard() == heard()


def test_pace(client: openai.OpenAI) -> None:
    def length(speed: float) -> float:
        answer = client.audio.speech.create(
            model="tts-1", voice="heart", input=TEXT, response_format="pcm", speed=speed
        )
        return seconds(answer.content, "pcm")

    assert length(4.0) < length(1.0) / 3 < length(0.25) / 10


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"voice": "nobody"}, "voice", "heart"),
        ({"voice": {"id": "nobody"}}, "voice", "heart"),
        ({"voice": 5}, "voice", ""),
        ({"voice": "heart", "input": "你好"}, "voice", "中文女"),
        ({"input": ""}, "input", "empty"),
        ({"input": "?! …"}, "input", "nothing to speak"),
        ({"input": "x" * (MAX_CHARACTERS + 1)}, "input", str(MAX_CHARACTERS)),
        ({"input": ["a"]}, "input", ""),
        ({"input": None}, "input", ""),
        ({"speed": 0.2}, "speed", "0.25"),
        ({"speed": 4.1}, "speed", "4"),
        ({"speed": "fast"}, "speed", ""),
        ({"response_format": "ogg"}, "response_format", "mp3"),
        ({"stream_format": "json"}, "stream_format", "sse"),
        ({"instructions": "Speak like a pirate."}, "instructions", "leave the field out"),
        ({"seed": -1}, "seed", ""),
    ],
)
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/audio/speech"])
def test_bad_requests_name_the_field(
    http: httpx2.Client, path: str, body: dict[str, Any], param: str, said: str
) -> None:
    answer = http.post(path, json={"model": "tts-1", "input": "Hello.", "voice": "alloy", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]
    assert "Traceback" not in answer.text


def test_a_missing_input_and_bodies_that_are_no_request(http: httpx2.Client) -> None:
    assert http.post("/v1/audio/speech", json={}).json()["error"]["param"] == "input"
    for content in (b"", b"{", b"[]", b"\xff\xfe", b'"x"', b'{"input": "\\ud800"}'):
        answer = http.post("/v1/audio/speech", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
    answer = http.post("/v1/audio/speech", content=b"x" * (5 << 20), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_nulls_and_unknown_fields_are_let_be(http: httpx2.Client) -> None:
    body = {"input": "Hello.", "model": None, "voice": None, "speed": None, "instructions": " ", "later": 1}
    assert http.post("/v1/audio/speech", json=body).status_code == 200


def test_an_unknown_voice_and_model_in_the_sdk(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.audio.speech.create(model="tts-1", voice="nobody", input="Hello.")
    assert (bad.value.param, bad.value.code) == ("voice", "unknown_voice")
    with pytest.raises(openai.NotFoundError) as missing:
        client.audio.speech.create(model="whisper-9", voice="alloy", input="Hello.")
    assert missing.value.code == "model_not_found"


def test_every_field_of_openais_request_is_known() -> None:
    assert set(SpeechCreateParams.__annotations__) <= set(SpeechRequest.model_fields)


def test_the_bare_path_answers_with_a_wav_that_knows_its_length(origin: str) -> None:
    client = openai.OpenAI(base_url=origin, api_key="EMPTY", max_retries=0)
    answer = client.audio.speech.create(model="tts-1", voice="中文女", input=CHINESE)
    assert answer.response.headers["content-type"] == "audio/wav"
    assert answer.response.headers["x-quintet-engine"] == "espeak-ng"
    with wave.open(io.BytesIO(answer.content)) as wav:
        length = wav.getnframes() / wav.getframerate()
    assert 3 < length < 12
    assert length == pytest.approx(seconds(answer.content, "wav"))


def test_a_text_too_long_for_a_whole_wav_is_sent_to_where_sound_streams(http: httpx2.Client) -> None:
    answer = http.post("/audio/speech", json={"input": "x" * 20_001})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert "/v1" in answer.json()["error"]["message"]


def test_a_hundred_thousand_characters_begin_to_sound_at_once(http: httpx2.Client) -> None:
    text = "It was a fine day. 天气很好。 いいてんき。 날씨가 좋다. " * 2_500
    assert len(text.encode()) > 100_000
    with http.stream("POST", "/v1/audio/speech", json={"input": text, "voice": "alloy"}) as answer:
        assert answer.status_code == 200
        begun = time.monotonic()
        assert next(answer.iter_raw())
        assert time.monotonic() - begun < 20  # all of it takes minutes


def test_a_streamed_wav_can_be_opened(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="heart", input="Hello.", response_format="wav")
    with wave.open(io.BytesIO(answer.content)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, 24000)
        assert len(wav.readframes(wav.getnframes())) == len(answer.content) - 44


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/audio/voices", "/v1/audio/voices?model=tts-1"])
def test_voices(http: httpx2.Client, path: str) -> None:
    voices = {voice["id"]: voice for voice in http.get(path).json()["voices"]}
    assert len(voices) == 25
    assert voices["heart"]["engine"] == "hibari"
    assert voices["alloy"]["alias_of"] == "heart"
    assert voices["中文女"] == {
        "id": "中文女",
        "name": "Chinese woman",
        "model": "hibari",
        "language": "zh-CN",
        "gender": "female",
        "engine": "espeak-ng",
        "available": True,
        "note": voices["中文女"]["note"],
    }


def test_what_open_web_ui_asks_for(http: httpx2.Client) -> None:
    """Its speech settings list models and voices by id and name, and send what was chosen with no other field."""
    assert http.get("/v1/audio/models").json() == {"models": [{"id": "hibari", "name": "hibari"}]}
    names = {voice["id"]: voice["name"] for voice in http.get("/v1/audio/voices").json()["voices"]}
    assert names["alloy"] == "Alloy"
    answer = http.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hello.", "voice": "alloy"})
    assert answer.headers["content-type"] == "audio/mpeg"


def test_voices_of_an_unknown_model(http: httpx2.Client) -> None:
    assert http.get("/v1/audio/voices?model=x").json()["error"]["code"] == "model_not_found"


def test_the_model_says_what_it_is(client: openai.OpenAI) -> None:
    card = client.models.retrieve("hibari").model_dump()
    assert {"espeak-ng", "hibari"} <= set(card["engine"].split("+"))  # and those of the extras that are installed
    assert (card["sample_rate"], card["voices"]) == (24000, 25)


def test_metrics(http: httpx2.Client) -> None:
    http.post("/v1/audio/speech", json={"input": "Count me.", "response_format": "pcm"})
    text = http.get("/metrics").text
    for name in (
        "audio_seconds_total",
        "characters_total",
        "real_time_factor_count",
        "request_queue_time_seconds_count",
    ):
        start = f'quintet_{name}{{model="hibari",service="tts"}} '
        line = next(line for line in text.splitlines() if line.startswith(start))
        assert float(line.split()[-1]) > 0
    assert 'quintet_time_to_first_output_seconds_count{endpoint="/audio/speech",model="hibari",service="tts"}' in text
    assert 'quintet_num_requests_waiting{model="hibari",service="tts"} 0.0' in text


def test_sixteen_at_once(client: openai.OpenAI) -> None:
    def heard(_: int) -> bytes:
        return client.audio.speech.create(
            model="tts-1", voice="heart", input="All of us.", response_format="pcm", extra_body={"seed": 1}
        ).content

    with ThreadPoolExecutor(16) as threads:
        assert len(set(threads.map(heard, range(16)))) == 1


def test_docs_show_the_routes(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/audio/speech", "/v1/audio/voices"} <= set(paths)
