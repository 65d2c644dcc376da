"""Chat completions through OpenAI's own SDK, on a worker whose answers are known."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from quintet_chat.api.chat_request import ChatRequest
from quintet_chat.api.completion_request import CompletionRequest

USER = [{"role": "user", "content": "Hi"}]


def script(**fields: Any) -> dict[str, Any]:
    return {"chat_template_kwargs": fields}


def shown(client: OpenAI, **fields: Any) -> dict[str, Any]:
    """The request as the worker got it."""
    fields = {"model": "short", "messages": USER, **fields}
    extra = fields.pop("extra_body", {})
    answer = client.chat.completions.create(**fields, extra_body=script(show=True) | extra)
    request: dict[str, Any] = json.loads(answer.choices[0].message.content or "")
    return request


def stream_of(url: str, **body: Any) -> list[dict[str, Any]]:
    """The data of a stream, as it came over the wire."""
    body = {"model": "short", "messages": USER, "stream": True, **body}
    with httpx2.stream("POST", f"{url}/chat/completions", json=body, timeout=120) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize(("schema", "params"), [(ChatRequest, ChatParams), (CompletionRequest, CompletionParams)])
def test_every_field_of_openais_request_is_known(schema: Any, params: Any) -> None:
    assert set(params.__annotations__) <= set(schema.model_fields)


def test_an_answer_has_exactly_the_fields_of_openais(scripted_url: str) -> None:
    body = {"model": "short", "messages": USER, "stream": False}
    answer = httpx2.post(f"{scripted_url}/v1/chat/completions", json=body).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert abs(answer.pop("created") - time.time()) < 60
    assert answer == {
        "object": "chat.completion",
        "model": "short",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there.", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


def test_without_a_model_the_default_answers(scripted_url: str) -> None:
    for name in ({}, {"model": None}, {"model": ""}):
        answer = httpx2.post(f"{scripted_url}/v1/chat/completions", json={"messages": USER, **name}).json()
        assert answer["model"] == "org/scripted"


def test_a_stream_has_exactly_the_chunks_of_openais(scripted_url: str) -> None:
    chunks = stream_of(f"{scripted_url}/v1")
    assert {key: chunks[0][key] for key in ("object", "model")} == {"object": "chat.completion.chunk", "model": "short"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": " there"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "."}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ]
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_with_usage_ends_with_it(scripted_url: str) -> None:
    *chunks, last = stream_of(f"{scripted_url}/v1", stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 10


def test_choices_of_a_stream_are_told_apart(client: OpenAI) -> None:
    pieces = [["a", "b"], ["x", "y", "z"]]
    texts = ["", ""]
    stream = client.chat.completions.create(
        model="short", messages=USER, n=2, stream=True, extra_body=script(pieces=pieces)
    )
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["ab", "xyz"]


def test_the_sdks_stream_helper_reads_our_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model="short", messages=USER, logprobs=True, top_logprobs=2) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert "logprobs.content.done" in kinds
    assert final.choices[0].message.content == "Hello there."
    assert final.choices[0].logprobs is not None
    tokens = final.choices[0].logprobs.content or []
    assert [token.token for token in tokens] == ["Hello", " there", "."]
    assert [top.token for top in tokens[0].top_logprobs] == ["Hello", "other"]


def test_logprobs_of_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="short", messages=USER, logprobs=True)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert [(each.token, each.logprob, each.top_logprobs) for each in tokens[:1]] == [("Hello", -0.5, [])]


def test_sampling_reaches_the_worker(client: OpenAI) -> None:
    extras = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [3], "ignore_eos": True}
    sampling = shown(
        client,
        temperature=0,
        top_p=0.5,
        seed=7,
        stop=["x", "y"],
        max_tokens=5,
        max_completion_tokens=9,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"12": -100},
        logprobs=True,
        top_logprobs=4,
        extra_body=script(show=True) | extras | {"min_tokens": 2},
    )["sampling"]
    assert sampling == extras | {
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["x", "y"],
        "max_tokens": 9,
        "min_tokens": 2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"12": -100.0},
        "logprobs": 4,
    }


def test_what_a_request_leaves_out_comes_from_the_model(client: OpenAI) -> None:
    assert shown(client)["sampling"]["temperature"] == 0.3
    assert shown(client, model="toolless")["sampling"]["temperature"] == 1.0
    assert shown(client, temperature=0.9)["sampling"]["temperature"] == 0.9


def test_messages_as_templates_take_them(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "Ann"}]
    assert shown(client, messages=messages)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\ntwo", "name": "Ann"},
    ]


@pytest.mark.parametrize(
    ("wanted", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object", "value": None}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
            {"type": "json_schema", "value": {"type": "array"}},
        ),
    ],
)
def test_response_formats_become_grammars(client: OpenAI, wanted: Any, grammar: Any) -> None:
    assert shown(client, response_format=wanted)["grammar"] == grammar


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": USER * 10_001}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "no"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ({"model": 5}, "model"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1, "min_tokens": 2}, "min_tokens"),
    ({"seed": 2**70}, "seed"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"word": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "mcp"}]}, "tools[0].type"),
    ({"messages": [{"role": "assistant", "audio": {"id": "a"}}, *USER]}, "messages[0].audio"),
    (
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}, *USER]},
        "messages[0].function_call",
    ),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools[1].function.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"functions": []}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"store": True}, "store"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"guided_regex": "a+"}, "guided_regex"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs"),
    ({"moderation": {"model": "x"}}, "moderation"),
    ({"verbosity": "low"}, "verbosity"),
    ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
    ({"metadata": {"big": 2**70}, "chat_template_kwargs": {"big": 2**70}}, "None"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{param}-{i}" for i, (_, param) in enumerate(BAD)])
def test_bad_input_is_a_400_that_names_its_field(scripted_url: str, fields: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": "short", "messages": USER, **fields})
    headers = {"content-type": "application/json"}
    response = httpx2.post(f"{scripted_url}/v1/chat/completions", content=body, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, str(error["param"])) == (400, param), error
    assert error["type"] == "invalid_request_error"


def test_what_openai_takes_and_needs_nothing_from_us_is_accepted(client: OpenAI) -> None:
    client.chat.completions.create(
        model="short",
        messages=USER,
        user="ann",
        metadata={"a": "b"},
        service_tier="auto",
        store=False,
        modalities=["text"],
        verbosity="medium",
        prompt_cache_key="k",
        safety_identifier="s",
        reasoning_effort="low",
        parallel_tool_calls=True,
        tools=[],
        extra_body={"nobody_knows": 1},
    )


def test_a_tier_is_told_to_those_who_asked_for_one(client: OpenAI, scripted_url: str) -> None:
    answer = client.chat.completions.create(model="short", messages=USER, service_tier="flex")
    assert answer.service_tier == "default"
    assert {chunk["service_tier"] for chunk in stream_of(f"{scripted_url}/v1", service_tier="flex")} == {"default"}


def test_obfuscation_evens_out_the_sizes_of_deltas(scripted_url: str) -> None:
    for dialect in ("/v1", ""):
        pieces = script(pieces=["a", "bcd", "e" * 40])
        chunks = stream_of(f"{scripted_url}{dialect}", stream_options={"include_obfuscation": True}, **pieces)
        sizes = {len(str(chunk["choices"][0]["delta"])) + len(chunk["obfuscation"]) for chunk in chunks}
        assert {size % 32 for size in sizes} == {0}
        assert all("obfuscation" not in chunk for chunk in stream_of(f"{scripted_url}{dialect}", **pieces))


def test_reasoning_effort_reaches_the_template(client: OpenAI) -> None:
    assert shown(client, reasoning_effort="high")["template_args"]["reasoning_effort"] == "high"


def test_an_unknown_model_is_a_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=USER)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_worker_refuses_keeps_its_status(client: OpenAI, stream: bool) -> None:
    refuse = {"status": 429, "message": "Full.", "param": "messages", "code": "queue_full"}
    with pytest.raises(openai.RateLimitError, match=r"Full\.") as caught:
        client.chat.completions.create(model="short", messages=USER, stream=stream, extra_body=script(refuse=refuse))
    assert (caught.value.code, caught.value.param) == ("queue_full", "messages")


def test_a_failure_in_the_middle_of_a_stream_is_an_error_event(client: OpenAI) -> None:
    failing = script(fail_after=True)
    stream = client.chat.completions.create(model="short", messages=USER, stream=True, extra_body=failing)
    texts = [next(stream).choices[0].delta.content for _ in range(4)]
    with pytest.raises(openai.APIError, match="melted"):
        next(stream)
    assert texts == ["", "Hello", " there", "."]


def test_a_failure_of_a_whole_answer_is_a_500(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="melted") as caught:
        client.chat.completions.create(model="short", messages=USER, extra_body=script(fail_after=True))
    assert caught.value.code == "melted"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(scripted_url: str, stream: bool) -> None:
    """The worker counts what was cancelled; its own count comes with its next report, a second later at most."""
    name = 'quintet_cancelled_requests{model="org/scripted",service="chat"}'
    before = metric(scripted_url, name)
    body = {"model": "short", "messages": USER, "stream": stream}
    body["chat_template_kwargs"] = {"pieces": ["word "] * 2000, "delay": 0.01}
    if stream:
        with httpx2.stream("POST", f"{scripted_url}/v1/chat/completions", json=body) as response:
            assert next(response.iter_lines()).startswith("data: ")
    else:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{scripted_url}/v1/chat/completions", json=body, timeout=0.5)
    deadline = time.monotonic() + 60
    while metric(scripted_url, name) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert metric(scripted_url, name) == before + 1


def metric(url: str, name: str) -> float:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)


def test_requests_are_counted(scripted_url: str, client: OpenAI) -> None:
    labels = '{model="native",service="chat"}'
    names = (
        "quintet_prompt_tokens_total",
        "quintet_generation_tokens_total",
        "quintet_time_to_first_token_seconds_count",
        "quintet_request_queue_time_seconds_count",
    )
    ended = 'quintet_request_success_total{finished_reason="length",model="native",service="chat"}'
    gaps = f"quintet_inter_token_latency_seconds_count{labels}"
    before = [metric(scripted_url, name + labels) for name in names] + [
        metric(scripted_url, each) for each in (ended, gaps)
    ]
    client.chat.completions.create(model="native", messages=USER, extra_body=script(reason="length"))
    after = [metric(scripted_url, name + labels) for name in names] + [
        metric(scripted_url, each) for each in (ended, gaps)
    ]
    assert [b - a for a, b in zip(before, after, strict=True)] == [7, 3, 1, 1, 1, 2]


def test_both_dialects_answer_on_their_paths(client: OpenAI, zlai_client: OpenAI) -> None:
    for each in (client, zlai_client):
        answer = each.chat.completions.create(model="short", messages=USER)
        assert answer.choices[0].message.content == "Hello there."


def test_the_api_never_imports_what_the_models_need() -> None:
    heavy = ["torch", "transformers", "xgrammar", "numpy", "rapidocr", "onnxruntime", "cv2"]
    code = f"import quintet_chat.app, sys; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.stderr.strip() == ""
