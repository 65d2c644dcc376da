"""Custom tools through the API: called with a text instead of JSON, on a worker whose answers are known."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from chat.test_api_chat import USER, script, shown, stream_of
from chat.test_api_responses import events_of
from chat.test_api_responses import shown as response_shown
from chat.test_api_tools import WEATHER
from openai import OpenAI
from quintet_chat.tools.custom import function_of

GRAMMAR = {"syntax": "lark", "definition": 'start: "SELECT " /[a-z]+/ ";"'}
QUERY: Any = {
    "type": "custom",
    "custom": {"name": "query", "description": "Asks.", "format": {"type": "grammar", "grammar": GRAMMAR}},
}
NOTE: Any = {"type": "custom", "custom": {"name": "note"}}
FLAT: Any = {"type": "custom", "name": "query", "description": "Asks.", "format": {"type": "grammar", **GRAMMAR}}
CALL = [
    "<tool",
    '_call>\n{"name": "query", "argu',
    'ments": {"inp',
    'ut": "SELECT \\',
    'n\\u00e9;"}}\n</tool_',
    "call>",
]
GIVEN = "SELECT \né;"


def test_the_model_sees_a_function_with_the_grammar_in_words(client: OpenAI) -> None:
    request = shown(client, model="native", tools=[QUERY, NOTE, WEATHER])
    query, note, weather = (tool["function"] for tool in request["tools"])
    assert query["description"] == f"Asks.\n\nThe input matches this Lark grammar:\n{GRAMMAR['definition']}"
    assert query["parameters"]["required"] == note["parameters"]["required"] == ["input"]
    assert "description" not in note
    assert weather == WEATHER["function"]
    tags = request["grammar"]["value"]["format"]["tags"]
    assert "SELECT" not in json.dumps(tags[1:])
    assert tags[0]["content"]["content"]["content"]["type"] == "grammar"


def test_a_call_of_a_custom_tool_has_its_text(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="short", messages=USER, tools=[QUERY], extra_body=script(pieces=CALL))
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "custom"
    assert (call.custom.name, call.custom.input) == ("query", GIVEN)


@pytest.mark.parametrize("dialect", ["/v1", ""])
def test_its_text_streams_as_it_grows(scripted_url: str, dialect: str) -> None:
    chunks = stream_of(f"{scripted_url}{dialect}", tools=[QUERY, WEATHER], **script(pieces=CALL))
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["type"] == "custom"
    assert "function" not in calls[0]
    assert "".join(call["custom"]["input"] for call in calls) == GIVEN
    assert len(calls) == (3 if dialect else 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_openais_client_reads_the_stream(client: OpenAI) -> None:
    fields: Any = {"model": "short", "messages": USER, "tools": [QUERY], "extra_body": script(pieces=CALL)}
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **fields)]
    calls: list[Any] = [call for delta in deltas for call in delta.tool_calls or []]
    assert "".join(call.custom["input"] for call in calls) == GIVEN


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_items_of_custom_calls(client: OpenAI, stream: bool) -> None:
    fields: Any = {"model": "short", "input": "Hi", "tools": [FLAT], "extra_body": script(pieces=CALL)}
    if stream:
        with client.responses.stream(**fields) as events:
            response: Any = events.get_final_response()
    else:
        response = client.responses.create(**fields)
    (item,) = response.output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "query", GIVEN)
    assert response.tools[0].to_dict() == FLAT


def test_the_events_of_a_custom_call(scripted_url: str) -> None:
    events = events_of(scripted_url, tools=[FLAT], **script(pieces=CALL))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[2:-1] == [
        "output_item.added",
        *["custom_tool_call_input.delta"] * 2,
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    assert events[-3]["input"] == GIVEN == "".join(event["delta"] for event in events if "delta" in event)


def test_calls_of_the_history_reach_the_template(client: OpenAI) -> None:
    call = {"id": "c1", "type": "custom", "custom": {"name": "query", "input": GIVEN}}
    history: Any = [
        *USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    messages = shown(client, model="native", tools=[QUERY], messages=history)["messages"]
    items: Any = [
        {"role": "user", "content": "Hi"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "query", "input": GIVEN},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "3"},
    ]
    assert response_shown(client, model="native", tools=[FLAT], input=items)["messages"] == messages
    assert messages[1]["tool_calls"][0]["function"] == {"name": "query", "arguments": {"input": GIVEN}}


def test_a_choice_may_name_custom_tools(client: OpenAI) -> None:
    named: Any = {"type": "custom", "custom": {"name": "query"}}
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for choice in (named, allowed):
        request = shown(client, model="native", tools=[QUERY, NOTE], tool_choice=choice)
        assert [tool["function"]["name"] for tool in request["tools"]] == ["query"]
    flat: Any = {"type": "custom", "name": "query"}
    flat_allowed: Any = {"type": "allowed_tools", "mode": "required", "tools": [flat]}
    for choice in (flat, flat_allowed):
        request = response_shown(client, model="native", tools=[FLAT], tool_choice=choice)
        assert [tool["function"]["name"] for tool in request["tools"]] == ["query"]


def test_what_cannot_be_held_is_refused_by_name(client: OpenAI) -> None:
    wrong: dict[str, Any] = {"syntax": "regex", "definition": "(?=a)"}
    tool: Any = {"type": "custom", "custom": {"name": "a", "format": {"type": "grammar", "grammar": wrong}}}
    with pytest.raises(openai.BadRequestError, match="looking around") as caught:
        client.chat.completions.create(model="short", messages=USER, tools=[tool])
    assert caught.value.param == "tools[0].custom.format.grammar.definition"
    assert caught.value.code == "unsupported_grammar"
    flat: Any = {"type": "custom", "name": "a", "format": {"type": "grammar", **wrong}}
    with pytest.raises(openai.BadRequestError, match=r"tools\[0\]\.format\.definition") as caught:
        client.responses.create(model="short", input="Hi", tools=[flat])
    assert caught.value.param == "tools[0].format.definition"
    for form, param in (({"type": "grammar"}, "syntax"), ({"type": "grammar", "syntax": "lark"}, "definition")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="short", input="Hi", tools=[flat | {"format": form}])
        assert caught.value.param == f"tools[0].format.{param}"


def test_brackets_within_brackets_take_no_time() -> None:
    began = time.thread_time()  # with a look at all that is inside at every level: its third power, minutes
    assert function_of("a", "regex", "(" * 300 + "a" + "b?)" * 300).ebnf is not None
    assert time.thread_time() - began < 2


def test_grammars_have_a_length_together(client: OpenAI) -> None:
    def tools(count: int) -> Any:
        grammar = {"syntax": "regex", "definition": "(?:[0-9])" + "(?#)" * 4000}
        form = {"type": "grammar", "grammar": grammar}
        return [{"type": "custom", "custom": {"name": f"a{number}", "format": form}} for number in range(count)]

    with pytest.raises(openai.BadRequestError, match="more than 65536 characters together") as caught:
        client.chat.completions.create(model="short", messages=USER, tools=tools(5))
    assert caught.value.param == "tools"
    client.chat.completions.create(model="short", messages=USER, tools=tools(4))
