"""Tools through the API, both dialects, on a worker whose answers are known."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from chat.test_api_chat import USER, script, shown, stream_of
from openai import OpenAI

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD = {"type": "function", "function": {"name": "add"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = ["<tool", '_call>\n{"name": "get_weather", "argu', 'ments": {"city"', ': "Paris"}}\n</tool_', "call>"]
CALLED = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    }
]
ANSWERED = [*USER, *CALLED, {"role": "tool", "content": "15 degrees", "tool_call_id": "c1"}]


def tag_of(request: dict[str, Any]) -> dict[str, Any]:
    assert request["grammar"]["type"] == "structural_tag"
    assert request["grammar"]["value"]["type"] == "structural_tag"
    found: dict[str, Any] = request["grammar"]["value"]["format"]
    return found


def names_in(tag: dict[str, Any]) -> list[str]:
    return [each["begin"].split('"')[3] for each in tag["tags"]]


def test_a_call_in_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="short", messages=USER, tools=[WEATHER], extra_body=script(pieces=CALL)
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert (call.type, call.function.name, call.function.arguments) == ("function", "get_weather", '{"city": "Paris"}')


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ('{"city": "Paris"}', {"city": "Paris"}),
        ('{"city": "Paris', '{"city": "Paris'),
        (f'{{"population": {10**30}}}', f'{{"population": {10**30}}}'),
        ('{"city":' * 5000, '{"city":' * 5000),
    ],
    ids=["object", "cut", "large number", "deep"],
)
def test_arguments_of_the_history_are_an_object_where_they_can_be(client: OpenAI, written: str, taken: Any) -> None:
    function = {"name": "get_weather", "arguments": written}
    history = [*USER, {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}]
    message = shown(client, model="native", messages=history)["messages"][1]
    assert message["tool_calls"][0]["function"]["arguments"] == taken


def test_half_a_character_in_arguments_of_the_history_is_refused_by_name(client: OpenAI) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "\\ud800"}'}
    history: Any = [*USER, {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}]
    with pytest.raises(openai.BadRequestError, match="half a character") as caught:
        client.chat.completions.create(model="short", messages=history)
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"


def test_an_answer_without_a_call_has_no_such_field(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="short", messages=USER, tools=[WEATHER])
    assert "tool_calls" not in answer.choices[0].message.model_fields_set
    assert answer.choices[0].finish_reason == "stop"


def test_a_truncated_call_says_length(client: OpenAI) -> None:
    for stream in (False, True):
        extra = script(pieces=CALL[:3], reason="length")
        answer = client.chat.completions.create(
            model="short", messages=USER, tools=[WEATHER], stream=stream, extra_body=extra
        )
        last = list(answer)[-1] if stream else answer
        assert last.choices[0].finish_reason == "length"  # type: ignore[union-attr]


def test_a_streamed_call_has_exactly_the_chunks_of_openais(scripted_url: str) -> None:
    chunks = stream_of(f"{scripted_url}/v1", tools=[WEATHER], **script(pieces=["Look: ", *CALL]))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    call_id = deltas[2]["tool_calls"][0].pop("id")
    assert call_id.startswith("call_")
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "Look:"},
        {"tool_calls": [{"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ': "Paris"}'}}]},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_sdks_stream_helper_reads_our_calls(client: OpenAI) -> None:
    extra = script(pieces=CALL)
    with client.chat.completions.stream(model="short", messages=USER, tools=[WEATHER], extra_body=extra) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    (call,) = final.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_a_loop_of_call_and_result(client: OpenAI) -> None:
    first = client.chat.completions.create(
        model="short", messages=USER, tools=[WEATHER], extra_body=script(pieces=CALL)
    )
    call = (first.choices[0].message.tool_calls or [])[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "15"}
    request = shown(client, messages=[*USER, first.choices[0].message, result], tools=[WEATHER])
    assert [message["role"] for message in request["messages"]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("choice", "kind", "names"),
    [
        (None, "triggered_tags", ["get_weather", "add"]),
        ("auto", "triggered_tags", ["get_weather", "add"]),
        ("required", "tags_with_separator", ["get_weather", "add"]),
        (NAMED, "tags_with_separator", ["get_weather"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ADD]}}, "triggered_tags", ["add"]),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            "tags_with_separator",
            ["get_weather"],
        ),
    ],
)
def test_tool_choice_becomes_a_grammar(client: OpenAI, choice: Any, kind: str, names: list[str]) -> None:
    extra = {} if choice is None else {"tool_choice": choice}
    tag = tag_of(shown(client, tools=[WEATHER, ADD], **extra))
    assert (tag["type"], names_in(tag)) == (kind, names)


def test_parallel_calls_can_be_forbidden(client: OpenAI) -> None:
    for choice in ("auto", "required"):
        tags = [
            tag_of(shown(client, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=several))
            for several in (True, False)
        ]
        assert [tag["stop_after_first"] for tag in tags] == [False, True]


def test_tool_choice_none_hides_the_tools(client: OpenAI) -> None:
    request = shown(client, tools=[WEATHER], tool_choice="none")
    assert request["grammar"] is None
    assert [message["role"] for message in request["messages"]] == ["user"]


def test_with_a_response_format_the_answer_is_a_call_or_that(client: OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}
    tag = tag_of(shown(client, tools=[WEATHER], response_format=wanted))
    assert tag["type"] == "or"
    assert [each["type"] for each in tag["elements"]] == ["tags_with_separator", "json_schema"]
    forced = tag_of(shown(client, tools=[WEATHER], tool_choice="required", response_format=wanted))
    assert forced["type"] == "tags_with_separator"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice.custom.name"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "get_weather"}}}, "tool_choice.custom.name"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]},
                }
            },
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        ({"model": "toolless"}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
        ),
    ],
)
def test_impossible_choices_are_refused_by_name(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "short", "messages": USER, "tools": [WEATHER], **fields})
    assert caught.value.param == param


def test_an_eager_model_calls_once_when_the_user_spoke(client: OpenAI) -> None:
    tag = tag_of(shown(client, model="eager", tools=[WEATHER]))
    assert (tag["type"], tag["stop_after_first"]) == ("tags_with_separator", True)


def test_an_eager_models_arguments_are_bounded(client: OpenAI) -> None:
    for model, bounds in (("eager", {"type": "string", "maxLength": 256}), ("short", {"type": "string"})):
        (tag,) = tag_of(shown(client, model=model, tools=[WEATHER]))["tags"]
        assert tag["content"]["json_schema"]["properties"]["city"] == bounds


def test_an_eager_models_json_is_bounded(client: OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    assert "maximum" in shown(client, model="eager", response_format=wanted)["grammar"]["value"]
    assert shown(client, response_format=wanted)["grammar"]["value"] == {"type": "integer"}


def test_a_function_without_parameters_takes_none(client: OpenAI) -> None:
    (tag,) = tag_of(shown(client, tools=[ADD]))["tags"]
    assert tag["content"]["json_schema"] == {"type": "object", "properties": {}, "additionalProperties": False}


def test_an_eager_model_calls_more_than_once_only_where_it_is_asked_to(client: OpenAI) -> None:
    for several, stops in ((None, True), (False, True), (True, False)):
        fields = {} if several is None else {"parallel_tool_calls": several}
        tag = tag_of(shown(client, model="eager", tools=[WEATHER], tool_choice="required", **fields))
        assert tag["stop_after_first"] is stops


def test_an_eager_model_answers_after_a_result(client: OpenAI) -> None:
    request = shown(client, model="eager", messages=ANSWERED, tools=[WEATHER])
    assert request["grammar"] is None
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user"]


def test_a_template_that_knows_tools_gets_them(client: OpenAI) -> None:
    request = shown(client, model="native", messages=ANSWERED, tools=[WEATHER])
    assert request["tools"] == [WEATHER]
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "tool"]
    assert request["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}


def test_zlai_streams_the_raw_call_and_then_the_whole_of_it(scripted_url: str) -> None:
    chunks = stream_of(scripted_url, tools=[WEATHER], **script(pieces=CALL))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert all(isinstance(delta["content"], str) for delta in deltas)
    assert "".join(delta["content"] for delta in deltas) == "".join(CALL)
    assert all("tool_calls" not in delta for delta in deltas[:-1])
    (call,) = deltas[-1]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_zlai_infers_the_roles_that_its_client_drops(zlai_client: OpenAI) -> None:
    call = CALLED[0] | {"content": None}
    messages: list[Any] = [{"content": "Hi"}, call, {"content": "15 degrees"}, {"content": "Thanks"}]
    request = shown(zlai_client, model="native", messages=messages)
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "tool", "user"]
    assert request["messages"][2]["tool_call_id"] == "c1"


def test_zlais_last_delta_has_a_content(scripted_url: str) -> None:
    chunks = stream_of(scripted_url)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "Hello", " there", ".", ""]


IN_XML = [
    "<tool_call>\n<function=get_",
    "weather>\n<parameter=city>\nPa",
    'ris "n',
    "\n</parame",
    "ter>\n</function>\n</tool_call>",
]


def test_a_call_in_xml_streams_as_json(client: OpenAI) -> None:
    fields = {"tools": [WEATHER], "tool_choice": "required"}
    with client.chat.completions.stream(
        model="coder", messages=USER, extra_body=script(pieces=IN_XML), **fields
    ) as stream:
        grown = [event.arguments for event in stream if event.type == "tool_calls.function.arguments.delta"]
        choice = stream.get_final_completion().choices[0]
    (call,) = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls"
    assert call.function.arguments == '{"city": "Paris \\"n"}'
    assert [each for each in grown if each] == ['{"city": "Pa', '{"city": "Paris \\"n', '{"city": "Paris \\"n"}']


def test_a_strict_function_that_xml_cannot_hold_to_is_refused(client: OpenAI) -> None:
    parameters = WEATHER["function"]["parameters"] | {"minProperties": 1}  # type: ignore[index]
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}
    with pytest.raises(openai.BadRequestError, match="minProperties") as caught:
        client.chat.completions.create(model="coder", messages=USER, tools=[tool])
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_schema")
