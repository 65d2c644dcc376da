"""The Responses API through OpenAI's own SDK, on a worker whose answers are known."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseReasoningItem
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import BaseModel
from quintet_chat.api.response_items import messages_of
from quintet_chat.api.response_request import ResponseRequest

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = ["<tool", '_call>\n{"name": "get_weather", "argu', 'ments": {"city"', ': "Paris"}}\n</tool_', "call>"]
THINKING = ["<think>Hm", ", a.</th", "ink>\n\nYes", "."]


def script(**fields: Any) -> dict[str, Any]:
    return {"chat_template_kwargs": fields}


def shown(client: OpenAI, **fields: Any) -> dict[str, Any]:
    """The request as the worker got it."""
    response = client.responses.create(**{"model": "short", "input": "Hi", "extra_body": script(show=True), **fields})
    request: dict[str, Any] = json.loads(response.output_text)
    return request


def events_of(url: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, as they came over the wire."""
    body = {"model": "short", "input": "Hi", "stream": True, **body}
    with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=120) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    names, data = lines[::2], [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert [f"event: {each['type']}" for each in data] == names
    assert [each["sequence_number"] for each in data] == list(range(len(data)))
    return data


def test_every_field_of_openais_request_is_known() -> None:
    assert set(ResponseCreateParamsBase.__annotations__) | {"stream"} <= set(ResponseRequest.model_fields)


def test_a_response_is_what_openais_types_demand(scripted_url: str) -> None:
    body = {"model": "short", "input": "Hi", "instructions": "Be kind.", "tools": [WEATHER], "metadata": {"a": "b"}}
    raw = httpx2.post(f"{scripted_url}/v1/responses", json=body).json()
    response = Response.model_validate(raw, strict=True)
    assert response.id.startswith("resp_")
    assert (response.status, response.output_text, response.model) == ("completed", "Hello there.", "short")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 3, 10)
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert response.instructions == "Be kind."
    assert response.metadata == {"a": "b"}
    assert response.tools[0].to_dict() == WEATHER
    assert raw["error"] is None
    assert raw["incomplete_details"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_is_whole_seconds(scripted_url: str, stream: bool) -> None:
    text = httpx2.post(f"{scripted_url}/v1/responses", json={"model": "short", "input": "Hi", "stream": stream}).text
    assert (
        set(re.findall(r'"created_at": ?([^,}]*)', text)) == set(re.findall(r'"created_at": ?(\d+)[,}]', text)) != set()
    )


def test_a_response_says_again_what_was_asked(client: OpenAI) -> None:
    asked: Any = {"prompt_cache_key": "k", "safety_identifier": "s", "max_tool_calls": 3, "parallel_tool_calls": False}
    late: Any = WEATHER | {"defer_loading": True, "async": True, "allowed_callers": ["direct"]}
    response = client.responses.create(
        model="short", input="Hi", reasoning={"context": "auto", "mode": "standard"}, tools=[late], **asked
    )
    assert response.tools[0].to_dict() == late
    assert {name: getattr(response, name) for name in asked} == asked
    bare = client.responses.create(model="short", input="Hi", parallel_tool_calls=False)
    assert bare.parallel_tool_calls is False


@pytest.mark.parametrize("stream", [False, True])
def test_what_python_cannot_name_is_named_as_openai_does(scripted_url: str, stream: bool) -> None:
    form = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": False}
    asked: dict[str, Any] = {"tools": [WEATHER | {"async": True}], "text": {"format": form}}
    if stream:
        said = events_of(scripted_url, **asked)[-1]["response"]
    else:
        said = httpx2.post(f"{scripted_url}/v1/responses", json={"model": "short", "input": "Hi", **asked}).json()
    assert said["tools"][0]["async"] is True
    assert said["text"]["format"] == form


def test_obfuscation_evens_out_the_sizes_of_deltas(scripted_url: str) -> None:
    events = events_of(scripted_url, stream_options={"include_obfuscation": True})
    deltas = [event for event in events if event["type"].endswith(".delta")]
    assert {len(event["delta"] + event["obfuscation"]) for event in deltas} == {32}
    assert all("obfuscation" not in event for event in events_of(scripted_url))


def test_a_stream_has_openais_events_in_their_order(scripted_url: str) -> None:
    events = events_of(scripted_url)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[2]["item"]["content"] == []
    assert events[3]["part"]["text"] == ""
    assert events[7]["text"] == "Hello there."
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert len({event["item_id"] for event in events[3:9]}) == 1


def test_the_sdks_stream_helper_reads_our_events(client: OpenAI) -> None:
    extra = script(pieces=[*THINKING, *CALL])
    with client.responses.stream(model="thinker", input="Hi", tools=[WEATHER], extra_body=extra) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.output_item.done") == 3
    thought, message, call = final.output
    assert isinstance(thought, ResponseReasoningItem)
    assert thought.content
    assert thought.content[0].text == "Hm, a."
    assert message.type == "message"
    assert final.output_text == "Yes."
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert final.usage is not None
    assert final.usage.output_tokens_details.reasoning_tokens == 3


def test_a_streamed_call_has_events_of_its_own(scripted_url: str) -> None:
    events = events_of(scripted_url, tools=[WEATHER], **script(pieces=CALL))
    kinds = [event["type"].removeprefix("response.") for event in events[2:-1]]
    assert kinds == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert events[2]["item"]["arguments"] == ""
    assert "".join(event["delta"] for event in events[3:5]) == events[5]["arguments"] == '{"city": "Paris"}'
    assert events[6]["item"]["status"] == "completed"


def test_a_whole_response_and_a_stream_come_to_the_same(scripted_url: str) -> None:
    body = {"model": "thinker", "tools": [WEATHER], **script(pieces=[*THINKING, *CALL])}
    whole = httpx2.post(f"{scripted_url}/v1/responses", json={"input": "Hi", **body}).json()
    streamed = events_of(scripted_url, **body)[-1]["response"]
    assert [_without_ids(item) for item in whole["output"]] == [_without_ids(item) for item in streamed["output"]]
    assert whole["usage"] == streamed["usage"]


def _without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("id", "call_id")}


def test_a_truncated_response_is_incomplete(client: OpenAI, scripted_url: str) -> None:
    response = client.responses.create(model="short", input="Hi", extra_body=script(reason="length"))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    last = events_of(scripted_url, **script(reason="length"))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_failure_in_the_middle_of_a_stream_is_an_event(scripted_url: str, client: OpenAI) -> None:
    last = events_of(scripted_url, **script(fail_after=True))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "The graphics card melted."
    with pytest.raises(openai.InternalServerError, match="melted"):
        client.responses.create(model="short", input="Hi", extra_body=script(fail_after=True))


def test_items_become_the_messages_of_a_conversation(client: OpenAI) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "5"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "25"}]},
        {"id": "m", "role": "assistant", "type": "message", "content": [{"type": "output_text", "text": "5 and 25."}]},
        {"role": "user", "content": "Thanks"},
    ]
    messages = shown(client, model="native", input=items, instructions="Be kind.")["messages"]
    assert [message["role"] for message in messages] == [
        *("system", "system", "user", "assistant", "tool", "tool", "assistant", "user")
    ]
    assert [message["content"] for message in messages] == [
        *("Be kind.", "Be brief.", "Weather?", "", "5", "25", "5 and 25.", "Thanks")
    ]
    assert [call["id"] for call in messages[3]["tool_calls"]] == ["c1", "c2"]
    assert messages[3]["reasoning_content"] == "Look."


def test_options_reach_the_worker(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = shown(
        client,
        temperature=0.3,
        top_p=0.5,
        max_output_tokens=500,
        top_logprobs=2,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
    )
    sampling = request["sampling"]
    assert (sampling["temperature"], sampling["top_p"], sampling["max_tokens"]) == (0.3, 0.5, 500)
    assert sampling["logprobs"] == 2
    assert request["grammar"] == {"type": "json_schema", "value": schema}
    assert request["template_args"]["reasoning_effort"] == "low"


def test_tool_choices_reach_the_worker(client: OpenAI) -> None:
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        request = shown(client, tools=[WEATHER], tool_choice=choice)
        assert request["grammar"]["value"]["format"]["type"] == "tags_with_separator"
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}
    request = shown(client, tools=[WEATHER, WEATHER | {"name": "other"}], tool_choice=allowed)
    assert len(request["grammar"]["value"]["format"]["tags"]) == 1


def test_logprobs_come_with_the_text(client: OpenAI) -> None:
    response = client.responses.create(model="short", input="Hi", include=["message.output_text.logprobs"])
    (message,) = response.output
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert [each.token for each in part.logprobs or []] == ["Hello", " there", "."]


@pytest.mark.parametrize(
    ("model", "pieces", "told"),
    [
        ("short", ["Hello", "\n", "there", " <", "tool", "!", ""], ["Hello", "\n", "there", " <", "tool", "!", ""]),
        ("short", ["Hello", "\n", *CALL, "\n", "Done."], ["Hello", "Done."]),
        ("thinker", ["<think>", "Hm", ".", "</think>", "So", "\n", "be it."], ["So", "\n", "be it."]),
    ],
)
def test_logprobs_of_what_is_held_back_come_with_its_text(
    scripted_url: str, model: str, pieces: list[str], told: list[str]
) -> None:
    events = events_of(
        scripted_url,
        **{"model": model, "tools": [WEATHER], "include": ["message.output_text.logprobs"], **script(pieces=pieces)},
    )
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    parts = [part for item in events[-1]["response"]["output"] for part in item.get("content", [])]
    whole = [each["token"] for part in parts for each in part.get("logprobs") or []]
    assert whole == told
    streamed = [each["token"] for delta in deltas for each in delta["logprobs"]]
    assert streamed == [token for token in told if token]


def test_the_sdk_parses_a_response_into_its_model(client: OpenAI) -> None:
    class Answer(BaseModel):
        a: int

    extra = script(pieces=['{"a": ', "5}"])
    parsed = client.responses.parse(model="short", input="Hi", text_format=Answer, extra_body=extra)
    assert parsed.output_parsed == Answer(a=5)


def test_thousands_of_calls_are_read_in_no_time() -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "x"}
    began = time.thread_time()  # squared it would be minutes
    messages, _ = messages_of([call] * 50_000)
    assert time.thread_time() - began < 10
    assert [len(message.tool_calls or []) for message in messages] == [50_000]


def test_what_openai_does_not_have_is_as_for_chat(scripted_url: str) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [7], "ignore_eos": True}
    body = {
        "model": "short",
        "input": "Hi",
        "min_tokens": 3,
        "seed": 4,
        "chat_template_kwargs": {"show": True},
        **extra,
    }
    answer = httpx2.post(f"{scripted_url}/v1/responses", json=body).json()
    sampling = json.loads(answer["output"][0]["content"][0]["text"])["sampling"]
    assert {**sampling, **extra, "min_tokens": 3, "seed": 4} == sampling


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"include": ["reasoning.encrypted_content", "file_search_call.results"]}, "include[1]"),
    ({"include": ["whatever"]}, "include[0]"),
    ({"store": True}, "store"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"moderation": {"model": "x"}}, "moderation"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    ({"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}]}, "input"),
    ({"input": [{"type": "reasoning", "content": 5}, {"role": "user", "content": "Hi"}]}, "input[0].content"),
    ({"input": [{"type": "reasoning", "summary": ["x"]}, {"role": "user", "content": "Hi"}]}, "input[0].summary[0]"),
    ({"reasoning": {"summary": "foo"}}, "reasoning.summary"),
    ({"reasoning": {"generate_summary": "foo"}}, "reasoning.generate_summary"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}, "stream": True}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"tools": [WEATHER | {"allowed_callers": ["programmatic"]}]}, "tools[0].allowed_callers"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"role": "user", "content": "Hi"}] * 10_000}, "input"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].image_url"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
    ({"temperature": 3}, "temperature"),
    ({"chat_template_kwargs": {"refuse": {"status": 400, "message": "messages: no.", "param": "messages"}}}, "input"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{param}-{i}" for i, (_, param) in enumerate(BAD)])
def test_bad_input_is_a_400_that_names_its_field(scripted_url: str, fields: dict[str, Any], param: str) -> None:
    response = httpx2.post(f"{scripted_url}/v1/responses", json={"model": "short", "input": "Hi", **fields})
    error = response.json()["error"]
    assert (response.status_code, str(error["param"])) == (400, param), error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("field", "value"), [("metadata.x", {"x": "\ud800"}), ("user", "\ud800")])
def test_half_a_character_that_would_be_sent_back_is_refused(
    scripted_url: str, field: str, value: Any, stream: bool
) -> None:
    body = json.dumps({"model": "short", "input": "Hi", "stream": stream, field.split(".")[0]: value})
    response = httpx2.post(f"{scripted_url}/v1/responses", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


def test_a_name_from_chat_completions_is_told_what_it_is_here(scripted_url: str) -> None:
    answer = httpx2.post(f"{scripted_url}/v1/responses", json={"model": "short", "input": "Hi", "max_tokens": 5})
    assert answer.json()["error"]["message"] == "max_tokens: here it is max_output_tokens."


@pytest.mark.parametrize(("given", "says"), [([], "at least 1 item"), (5, "expected a string or a list of items")])
def test_an_input_of_no_form_is_told_what_forms_there_are(scripted_url: str, given: Any, says: str) -> None:
    answer = httpx2.post(f"{scripted_url}/v1/responses", json={"model": "short", "input": given})
    assert says in answer.json()["error"]["message"]
