"""Models that think, through the API: the thoughts are a field of their own, nothing is lost and nothing is doubled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat.test_api_chat import USER, script, shown, stream_of
from chat.test_api_tools import CALL, CALLED, WEATHER
from openai import OpenAI
from quintet_chat.api.chat_request import ChatRequest
from quintet_chat.api.tool_plan import ToolPlan, grammar_of
from quintet_chat.tools import FAMILIES

THINKING = ["<think>Hm", ", a.</th", "ink>\n\nYes", "."]
HARMONY = [
    "<|channel|>analysis<|mess",
    "age|>Look it up.<|end|><|start|>assistant<|channel|>commentary<|message|>One mo",
    "ment.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{",
    '"city": "Paris"}',
]


def test_thoughts_are_a_field_of_their_own(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="thinker", messages=USER, extra_body=script(pieces=THINKING))
    message: Any = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("Hm, a.", "Yes.")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3


@pytest.mark.parametrize("dialect", ["/v1", ""])
def test_thoughts_are_streamed_before_the_answer(scripted_url: str, dialect: str) -> None:
    chunks = stream_of(f"{scripted_url}{dialect}", model="thinker", **script(pieces=THINKING))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, a."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    assert [key for delta in deltas[1:-1] for key in delta if key != "content"] == ["reasoning_content"] * 2
    if not dialect:
        assert all(isinstance(delta["content"], str) for delta in deltas)


WRAPPED = ["<think>\nHm", ", a.</th", "ink>\n<answ", "er>\nYes", ".\n</ans", "wer>"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_between_tags_is_without_them(client: OpenAI, stream: bool) -> None:
    fields: Any = {"model": "wrapper", "extra_body": script(pieces=WRAPPED)}
    if stream:
        with client.chat.completions.stream(messages=USER, **fields) as events:
            message: Any = events.get_final_completion().choices[0].message
        with client.responses.stream(input="Hi", **fields) as answers:
            response: Any = answers.get_final_response()
    else:
        message = client.chat.completions.create(messages=USER, **fields).choices[0].message
        response = client.responses.create(input="Hi", **fields)
    assert (message.reasoning_content, message.content) == ("Hm, a.", "Yes.")
    assert [item.content[0].text for item in response.output] == ["Hm, a.", "Yes."]


def test_json_may_have_the_tags_around_it(client: OpenAI) -> None:
    request = shown(client, model="wrapper", response_format={"type": "json_object"})
    wrapped, bare = request["grammar"]["value"]["format"]["elements"]
    assert (wrapped["begin"], wrapped["end"], bare["type"]) == ("<answer>", "</answer>", "json_schema")
    assert {"<think>", "</think>", "<answer>", "</answer>"} == set(request["marks"])


def test_a_prompt_may_have_opened_the_thinking(client: OpenAI) -> None:
    extra = script(pieces=["Hm.</think>Yes."], opened=True)
    message: Any = client.chat.completions.create(model="thinker", messages=USER, extra_body=extra).choices[0].message
    assert (message.reasoning_content, message.content) == ("Hm.", "Yes.")
    cut = script(pieces=["Hm, and"], opened=True, reason="length")
    choice = client.chat.completions.create(model="thinker", messages=USER, extra_body=cut).choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == ("Hm, and", "")  # type: ignore[attr-defined]
    assert choice.finish_reason == "length"


def test_an_answer_without_thoughts_has_no_such_field(client: OpenAI) -> None:
    for model in ("thinker", "short"):
        message = client.chat.completions.create(model=model, messages=USER).choices[0].message
        assert "reasoning_content" not in message.model_fields_set


def test_a_model_that_does_not_think_may_write_the_tag(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="short", messages=USER, extra_body=script(pieces=THINKING))
    assert answer.choices[0].message.content == "".join(THINKING)


def test_thoughts_and_calls_go_together(client: OpenAI) -> None:
    extra = script(pieces=[*THINKING[:2], "ink>\n\n", *CALL])
    choice = client.chat.completions.create(model="thinker", messages=USER, tools=[WEATHER], extra_body=extra).choices[
        0
    ]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.reasoning_content, choice.message.content) == ("Hm, a.", None)  # type: ignore[attr-defined]
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


@pytest.mark.parametrize("stream", [False, True])
def test_harmonys_channels_become_thoughts_text_and_calls(client: OpenAI, stream: bool) -> None:
    fields: Any = {"model": "oss", "messages": USER, "tools": [WEATHER], "extra_body": script(pieces=HARMONY)}
    if stream:
        with client.chat.completions.stream(**fields) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning_content == "Look it up."
    assert choice.message.content == "One moment."
    assert choice.message.tool_calls[0].function.name == "get_weather"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_zlai_gets_harmonys_call_as_text_and_whole(scripted_url: str) -> None:
    chunks = stream_of(scripted_url, model="oss", tools=[WEATHER], **script(pieces=HARMONY))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta["content"] for delta in deltas) == 'One moment.get_weather\n{"city": "Paris"}'
    assert deltas[-1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'


def test_the_worker_is_told_where_thinking_ends_and_what_to_show(client: OpenAI) -> None:
    request = shown(client, model="thinker", tools=[WEATHER])
    assert request["thinking"] == ["<think>", "</think>"]
    assert {"<think>", "</think>", "<tool_call>"} <= set(request["marks"])
    assert shown(client)["thinking"] is None
    assert shown(client)["marks"] == []


def test_effort_reaches_templates_under_the_names_they_know(client: OpenAI) -> None:
    assert shown(client, model="thinker", reasoning_effort="none")["template_args"]["enable_thinking"] is False
    assert shown(client, model="thinker", reasoning_effort="high")["template_args"]["enable_thinking"] is True
    none = shown(client, model="thinker", reasoning_effort="none")["template_args"]
    assert (none["thinking"], none["reasoning"], none["thinking_budget"]) == (False, False, 0)
    extra = script(show=True, enable_thinking=False)
    assert (
        shown(client, model="thinker", reasoning_effort="high", extra_body=extra)["template_args"]["enable_thinking"]
        is False
    )
    oss = {"model": "oss", "extra_body": script(pieces=['<|channel|>final<|message|>{"a": 1}'])}
    assert client.chat.completions.create(messages=USER, reasoning_effort="minimal", **oss).choices[0].message.content


def test_thoughts_of_the_history_reach_the_template(client: OpenAI) -> None:
    history: Any = [*USER, CALLED[0] | {"reasoning_content": "Look."}, {"role": "user", "content": "And?"}]
    messages = shown(client, model="native", messages=history)["messages"]
    assert (messages[1]["reasoning_content"], messages[1]["thinking"]) == ("Look.", "Look.")


def test_harmonys_json_is_in_the_final_channel() -> None:
    body = ChatRequest.model_validate({"messages": USER, "response_format": {"type": "json_object"}})
    grammar = grammar_of(body, ToolPlan(family=FAMILIES["harmony"]), is_small=False)
    assert grammar is not None
    assert grammar.value["format"]["elements"][1] == {
        "type": "const_string",
        "value": "<|channel|>final<|message|>",
    }
