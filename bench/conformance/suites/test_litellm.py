from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from served import MODEL, TOKENS, URL, USER, WEATHER

SERVER: dict[str, Any] = {"api_base": URL, "api_key": "none"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(**fields: Any) -> Any:
    return litellm.completion(**{"model": f"openai/{MODEL}", "messages": USER, "max_tokens": TOKENS} | SERVER | fields)


def test_an_answer() -> None:
    assert ask().choices[0].message.content


def test_a_stream_with_usage() -> None:
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].usage.completion_tokens


def test_a_call() -> None:
    answer = ask(messages=[{"role": "user", "content": WEATHER}], tools=[TOOL], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_a_text_that_goes_on() -> None:
    model = f"text-completion-openai/{MODEL}"
    assert litellm.text_completion(model=model, prompt="The sky is", max_tokens=5, **SERVER).choices[0].text


def test_a_response() -> None:
    answer = litellm.responses(model=f"openai/{MODEL}", input="Hi", max_output_tokens=TOKENS, **SERVER)
    assert answer.output[0].content[0].text


def test_errors_have_their_types() -> None:
    with pytest.raises(litellm.NotFoundError):
        ask(model="openai/nobody")
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(messages=[{"role": "user", "content": "word " * 20_000}])
