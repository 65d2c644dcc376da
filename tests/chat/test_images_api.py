"""Pictures through the API, served by processes of their own: what SDKs and ZLAI's clients send, and what they get."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from chat import picture_models as tiny
from chat.serving import serving
from openai import OpenAI
from quintet_chat.app import create_app

IMAGES = [tiny.picture(number) for number in range(3)]
SEEING = "tiny-vl"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    seeing = tiny.spec("qwen2_vl", id=SEEING, engine_args={"tool_family": "hermes"})
    with serving(create_app("multimodal", [seeing])) as url:
        yield url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def data_url(number: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(IMAGES[number]).decode()}"


def asked(text: str, *numbers: int) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(number)}} for number in numbers]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def expected(text: str, *numbers: int) -> str:
    """The answer of ``generate()``, without bytes at its end that are no whole character."""
    _, reader = tiny.reference("qwen2_vl")
    tokens = tiny.generate("qwen2_vl", [tiny.message(text, *numbers)], IMAGES, 12)
    answer: str = reader.tokenizer.decode(tokens, skip_special_tokens=True)
    return answer.rstrip("\ufffd")


def test_an_answer_about_several_pictures_in_their_order(client: OpenAI) -> None:
    options: Any = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
    for numbers in ((0, 1), (1, 0), (2,)):
        messages = asked("the cat", *numbers)
        answer = client.chat.completions.create(model=SEEING, messages=messages, **options)
        assert answer.choices[0].message.content == expected("the cat", *numbers)
        chunks = client.chat.completions.create(model=SEEING, messages=messages, stream=True, **options)
        streamed = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(streamed) == answer.choices[0].message.content


def test_usage_counts_the_tokens_of_pictures_and_says_what_was_cached(client: OpenAI, url: str) -> None:
    messages = asked("hello world hello world hello world", 2, 1)
    first, again = (client.chat.completions.create(model=SEEING, messages=messages, max_tokens=1) for _ in range(2))
    counted = httpx2.post(f"{url}/v1/tokenize", json={"model": SEEING, "messages": messages}, timeout=60).json()
    assert first.usage is not None
    assert first.usage.prompt_tokens == counted["count"] > 30
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == (counted["count"] - 1) // 16 * 16


def test_responses_take_pictures(client: OpenAI) -> None:
    content: Any = [
        {"type": "input_image", "image_url": data_url(0), "detail": "auto"},
        {"type": "input_text", "text": "the mat"},
    ]
    answer = client.responses.create(
        model=SEEING,
        input=[{"role": "user", "content": content}],
        temperature=0,
        max_output_tokens=12,
        extra_body={"ignore_eos": True},
    )
    assert answer.output_text == expected("the mat", 0)


def test_a_call_about_a_picture(client: OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"cats": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["cats"],
        "additionalProperties": False,
    }
    function: Any = {"name": "count", "parameters": parameters, "strict": True}
    answer = client.chat.completions.create(
        model=SEEING,
        messages=asked("count the cats", 0, 1),
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
        max_tokens=120,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert json.loads(calls[0].function.arguments).keys() == {"cats"}


def test_bare_base64_in_zlais_dialect(url: str) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": base64.b64encode(IMAGES[0]).decode()}},
        {"type": "text", "text": "the mat"},
    ]
    body = {"model": SEEING, "messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 12}
    answer = httpx2.post(f"{url}/chat/completions", json={**body, "ignore_eos": True}, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == expected("the mat", 0)


def test_what_is_refused_says_why(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 16"):
        client.chat.completions.create(model=SEEING, messages=asked("hello", *[0] * 17))
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens"):
        client.chat.completions.create(model=SEEING, messages=asked("hello " * 600, 0))
    with pytest.raises(openai.BadRequestError, match="2 marks of pictures instead of 1"):
        client.chat.completions.create(model=SEEING, messages=asked("what is <|image_pad|>", 0))


def test_the_list_of_models_says_what_they_take(url: str) -> None:
    (model,) = httpx2.get(f"{url}/v1/models", timeout=60).json()["data"]
    assert model["modalities"] == ["text", "image"]


def test_whether_pictures_are_taken_is_asked_of_the_model(scripted_url: str) -> None:
    """Of the one that is loaded, whatever its kind."""
    scripted = OpenAI(base_url=f"{scripted_url}/v1", api_key="none", max_retries=0)
    answer = scripted.chat.completions.create(model="seeing", messages=asked("say: yes", 0))
    assert answer.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="does not take pictures") as error:
        scripted.chat.completions.create(model="native", messages=asked("hello", 0))
    assert error.value.param == "messages[0].content[0].image_url"
