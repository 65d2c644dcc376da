"""Tokens of texts and conversations, and back, on the embedded model."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

HELLO = [{"role": "user", "content": "Hello"}]


def post(url: str, path: str, **body: Any) -> Any:
    response = httpx2.post(f"{url}{path}", json={"model": "smollm2", **body})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_text_becomes_tokens_and_text_again(smollm2_url: str, prefix: str) -> None:
    found = post(smollm2_url, f"{prefix}/tokenize", prompt="The sky is blue, 天空.", return_token_strs=True)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["token_strs"][:2] == ["The", "Ġsky"]
    assert found["max_model_len"] > 1000
    assert post(smollm2_url, f"{prefix}/detokenize", tokens=found["tokens"]) == {"prompt": "The sky is blue, 天空."}


def test_a_conversation_is_counted_as_it_is_sent(smollm2_url: str) -> None:
    found = post(smollm2_url, "/tokenize", messages=HELLO)
    assert set(found) == {"count", "max_model_len", "tokens"}
    answer = post(smollm2_url, "/v1/chat/completions", messages=HELLO, max_tokens=1)
    assert found["count"] == answer["usage"]["prompt_tokens"]
    text = post(smollm2_url, "/detokenize", tokens=found["tokens"])["prompt"]
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    shorter = post(smollm2_url, "/tokenize", messages=HELLO, add_generation_prompt=False)
    assert found["tokens"][: shorter["count"]] == shorter["tokens"]
    assert shorter["count"] < found["count"]


def test_the_input_of_a_response_is_counted_as_it_is_sent(smollm2_url: str) -> None:
    client = OpenAI(base_url=f"{smollm2_url}/v1", api_key="none", max_retries=0)
    weather: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
    asked: Any = {"model": "smollm2", "input": HELLO, "instructions": "Be brief.", "tools": [weather]}
    counted = client.responses.input_tokens.count(**asked)
    assert counted.object == "response.input_tokens"
    answer = client.responses.create(**asked, tool_choice="auto", max_output_tokens=16)
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens
    assert client.responses.input_tokens.count(model="smollm2", input="Hello").input_tokens < counted.input_tokens


def test_the_input_of_a_response_that_cannot_be_counted_names_its_field(smollm2_url: str) -> None:
    client = OpenAI(base_url=f"{smollm2_url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.input_tokens.count(model="smollm2", input="Hello", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        client.responses.input_tokens.count(model="nobody", input="Hello")


def test_an_answer_that_goes_on_has_no_end(smollm2_url: str) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Hi, I am"}]
    found = post(smollm2_url, "/tokenize", messages=begun, continue_final_message=True)
    text = post(smollm2_url, "/detokenize", tokens=found["tokens"])["prompt"]
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\nHi, I am")
    again = post(smollm2_url, "/tokenize", messages=begun, continue_final_message=True, add_generation_prompt=False)
    assert again == found


def test_what_is_too_long_to_answer_can_be_counted(smollm2_url: str) -> None:
    found = post(smollm2_url, "/tokenize", prompt="word " * 20_000)
    assert found["count"] > found["max_model_len"]


def test_nothing_is_nothing(smollm2_url: str) -> None:
    assert post(smollm2_url, "/tokenize", prompt="")["tokens"] == []
    assert post(smollm2_url, "/detokenize", tokens=[]) == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "x", "messages": HELLO}, "prompt"),
        ("tokenize", {"prompt": 5}, "prompt"),
        ("tokenize", {"messages": HELLO, "chat_template": "{{ messages }}"}, "chat_template"),
        ("tokenize", {"messages": HELLO, "continue_final_message": True}, "messages[0]"),
        (
            "tokenize",
            {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
        ),
        ("tokenize", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ("tokenize", {"prompt": "word " * 40_001}, "prompt"),
        ("tokenize", {"messages": [{"role": "user", "content": "word " * 40_001}]}, "messages"),
        ("detokenize", {"tokens": [5] * 200_001}, "tokens"),
        ("detokenize", {"tokens": [10**9]}, "tokens"),
        ("detokenize", {"tokens": ["x"]}, "tokens[0]"),
    ],
)
def test_bad_input_is_a_400_that_names_its_field(smollm2_url: str, path: str, body: Any, param: str) -> None:
    response = httpx2.post(f"{smollm2_url}/v1/{path}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
