"""The whole way on the embedded model: SDK, API, worker process, weights."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "format": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location", "format"],
        },
    },
}
QUESTION: list[Any] = [{"role": "user", "content": "What's the Celsius temperature in San Francisco?"}]
FRANCE: list[Any] = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture
def smol(smollm2_url: str) -> OpenAI:
    return OpenAI(base_url=f"{smollm2_url}/v1", api_key="none", max_retries=0)


def test_it_answers(smol: OpenAI) -> None:
    answer = smol.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, max_tokens=20)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10


def test_a_stream_says_the_same(smol: OpenAI) -> None:
    answer = smol.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, max_tokens=20)
    stream = smol.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, max_tokens=20, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert streamed == answer.choices[0].message.content


def test_a_custom_tools_text_is_held_to_its_grammar(smol: OpenAI) -> None:
    lark = 'start: "SELECT " name ("," name)~0..2 " FROM " name ";"\nname: /[a-z]{2,8}/'
    tool: Any = {
        "type": "custom",
        "name": "query",
        "format": {"type": "grammar", "syntax": "lark", "definition": lark},
    }
    asked = smol.responses.create(
        model="smollm2", input="The names of all users", tools=[tool], tool_choice={"type": "custom", "name": "query"}
    )
    (item,) = asked.output
    assert item.type == "custom_tool_call"
    assert re.fullmatch("SELECT [a-z,]+ FROM [a-z]+;", item.input)


def test_tools_from_the_call_to_the_answer(smol: OpenAI) -> None:
    asked = smol.chat.completions.create(model="smollm2", messages=QUESTION, tools=[WEATHER], temperature=0)
    assert asked.choices[0].finish_reason == "tool_calls"
    (call,) = asked.choices[0].message.tool_calls or []
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    assert arguments["format"] in ("celsius", "fahrenheit")
    assert isinstance(arguments["location"], str)
    result = {"role": "tool", "tool_call_id": call.id, "content": "{San Francisco, CA: {celsius: 15}}"}
    messages: Any = [*QUESTION, asked.choices[0].message, result]
    told = smol.chat.completions.create(
        model="smollm2", messages=messages, tools=[WEATHER], temperature=0, max_tokens=30
    )
    assert "15" in (told.choices[0].message.content or "")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_forced_call_is_valid_however_wild_the_sampling(smol: OpenAI, seed: int) -> None:
    with smol.chat.completions.stream(
        model="smollm2", messages=QUESTION, tools=[WEATHER], tool_choice="required", temperature=1.8, seed=seed
    ) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls or []:
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == {"location", "format"}
        assert arguments["format"] in ("celsius", "fahrenheit")


def test_a_schema_is_kept_to(smol: OpenAI) -> None:
    class Answer(BaseModel):
        city: str
        population: int

    parsed = smol.chat.completions.parse(
        model="smollm2", messages=FRANCE, response_format=Answer, temperature=0, max_tokens=80
    )
    assert parsed.choices[0].message.parsed is not None
    assert "Paris" in parsed.choices[0].message.parsed.city


def test_stop_and_seed_and_limits(smol: OpenAI) -> None:
    stopped = smol.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, stop="France")
    assert "France" not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].finish_reason == "stop"
    cut = smol.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, max_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 2


def test_a_text_is_continued(smol: OpenAI) -> None:
    answer = smol.completions.create(
        model="smollm2", prompt=["One, two,", "Red, green,"], max_tokens=4, temperature=0, echo=True
    )
    assert [choice.text[:8] for choice in answer.choices] == ["One, two", "Red, gre"]
    ids = smol.completions.create(model="smollm2", prompt=[[504, 28]], max_tokens=1, echo=True, temperature=0)
    assert ids.choices[0].text.startswith("The,")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": [{"role": "user", "content": "word " * 100_000}]}, "messages", "context_length_exceeded"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
            "response_format",
            "invalid_grammar",
        ),
    ],
)
def test_what_only_the_worker_knows_is_refused_with_its_field(
    smol: OpenAI, fields: dict[str, Any], param: str, code: str | None
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            smol.chat.completions.create(**{"model": "smollm2", "messages": FRANCE, "stream": stream, **fields})
        assert (caught.value.param, caught.value.code) == (param, code)


def test_many_clients_at_once_all_get_their_own_answer(smollm2_url: str) -> None:
    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"Repeat the number {number}."}]
        body = {"messages": messages, "max_tokens": 12, "temperature": 0}
        answer = httpx2.post(f"{smollm2_url}/v1/chat/completions", json=body, timeout=120).json()
        return str(answer["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(100, 116)))
    right = sum(str(number) in answer for number, answer in zip(range(100, 116), answers, strict=True))
    assert right >= 12, answers
