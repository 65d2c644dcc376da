"""glm-4v-9b's layout through the API, as ``engine: auto`` serves it: chat, streams, calls, both dialects."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from chat import glm4v_tiny
from chat.glm4v_tiny import CONFIG, MARKS, PLACES, greedy, picture, png
from chat.serving import serving
from openai import OpenAI
from quintet_chat.app import create_app
from quintet_chat.backends.chatglm_tokenizer import load_tokenizer
from quintet_common.models_yml import ModelSpec

MODEL = "glm-4v-9b"
TOOLS: Any = [
    {"type": "function", "function": {"name": "look", "parameters": {
        "type": "object", "properties": {"at": {"enum": ["cat", "dog"]}}, "required": ["at"],
        "additionalProperties": False}}},
]  # fmt: skip
GREEDY: Any = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm-4v")
    glm4v_tiny.write(folder, glm4v_tiny.text_model())
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    spec = ModelSpec(id=MODEL, kind="multimodal", path=str(folder), dtype="float32", device="cpu")
    with serving(create_app("multimodal", [spec], "quintet_chat.worker:create_engine")) as url:
        yield url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def encoded(number: int) -> str:
    return base64.b64encode(png(picture(number))).decode()


def asked(text: str, *numbers: int, prefix: str = "data:image/png;base64,") -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": prefix + encoded(number)}} for number in numbers]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    """What the original says of the first picture when it is asked what it is."""
    tokenizer = load_tokenizer("glm", folder)
    short = tokenizer.encode(f"[gMASK]<sop><|user|>\n{MARKS}what is it<|assistant|>")
    said, _ = greedy(glm4v_tiny.text_model(), short, picture(1), 12)
    text: str = tokenizer.decode(said, skip_special_tokens=True)
    return text.rstrip("\ufffd")


def test_it_is_served_by_our_own_engine_and_sees(url: str) -> None:
    (model,) = httpx2.get(f"{url}/v1/models", timeout=60).json()["data"]
    assert (model["engine"], model["modalities"]) == ("transformers", ["text", "image"])


def test_an_answer_and_a_stream(client: OpenAI, expected: str) -> None:
    messages = asked("what is it", 1)
    answer = client.chat.completions.create(model=MODEL, messages=messages, **GREEDY)
    assert answer.choices[0].message.content == expected
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > PLACES + 2
    chunks = client.chat.completions.create(model=MODEL, messages=messages, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected


def test_bare_base64_in_zlais_dialect(url: str, expected: str) -> None:
    body = {"model": MODEL, "messages": asked("what is it", 1, prefix=""), "temperature": 0, "max_tokens": 12}
    answer = httpx2.post(f"{url}/chat/completions", json={**body, "ignore_eos": True}, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == expected


def test_a_call_about_a_picture_its_stream_and_its_result(client: OpenAI) -> None:
    required: Any = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 60, "temperature": 0}
    messages = asked("what is it", 1)
    answer = client.chat.completions.create(model=MODEL, messages=messages, **required).choices[0]
    assert answer.message.tool_calls
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert (answer.finish_reason, call.function.name) == ("tool_calls", "look")
    assert json.loads(call.function.arguments)["at"] in ("cat", "dog")
    chunks = client.chat.completions.create(model=MODEL, messages=messages, stream=True, **required)
    pieces = [piece for chunk in chunks if chunk.choices for piece in chunk.choices[0].delta.tool_calls or []]
    streamed = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert json.loads(streamed) == json.loads(call.function.arguments)
    result: list[Any] = [
        *messages,
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "a cat"},
    ]
    after = client.chat.completions.create(model=MODEL, messages=result, tools=TOOLS, max_tokens=5)
    assert after.choices[0].message.role == "assistant"


def test_the_prompt_is_written_as_the_model_learnt_it(url: str, folder: Path) -> None:
    wanted = {"model": MODEL, "messages": asked("what", 1)}
    found = httpx2.post(f"{url}/v1/tokenize", json=wanted, timeout=60).json()
    ids = load_tokenizer("glm", folder).encode(f"[gMASK]<sop><|user|>\n{MARKS}what<|assistant|>")
    at = ids.index(CONFIG["pad_token_id"])
    assert found["tokens"] == [*ids[:at], *[CONFIG["pad_token_id"]] * PLACES, *ids[at + 1 :]]


def test_two_pictures_are_one_too_many(client: OpenAI) -> None:
    """In one message, and in two turns."""
    turns = [*asked("what", 1), {"role": "assistant", "content": "a cat"}, *asked("and", 2)]
    for messages in (asked("what", 1, 2), turns):
        with pytest.raises(openai.BadRequestError, match="takes one picture a conversation") as refused:
            client.chat.completions.create(model=MODEL, messages=messages)
        assert (refused.value.param, refused.value.code) == ("messages", "too_many_pictures")
