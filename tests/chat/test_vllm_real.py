"""vLLM itself behind our API, on a tiny Qwen2: what it says is what transformers' ``generate`` says.

Runs where QUINTET_VLLM_PYTHON names the interpreter of an environment that has vLLM.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from chat.engine_kit import tokenizer
from chat.vllm_models import THINKING_TEMPLATE, needs_vllm, served, spec_of, write_qwen2
from openai import OpenAI

pytestmark = needs_vllm
HELLO: list[Any] = [{"role": "user", "content": "hello the cat"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "clock")
]
THOUGHTLESS = {"chat_template_kwargs": {"enable_thinking": False}}
ANSWER = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"yes": {"type": "boolean"}},
            "required": ["yes"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen2")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return write_qwen2(folder)


@pytest.fixture(scope="module")
def url(folder: Path, reference: Any) -> Iterator[str]:
    del reference  # written by now
    spec = spec_of(folder, engine="vllm", engine_args={"thinking": "think"})
    with served(spec) as url:
        yield url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 12, **fields}
    )


def prompt_of(messages: list[Any], **fields: Any) -> str:
    made = tokenizer()
    made.chat_template = THINKING_TEMPLATE
    return str(made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **fields))


def continued(reference: Any, prompt: str, count: int) -> list[int]:
    """What ``generate`` puts after the prompt."""
    ids = torch.tensor([tokenizer()(prompt, add_special_tokens=False)["input_ids"]])
    found = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return [int(token) for token in found[0, ids.shape[1] :]]


def test_greedy_text_is_that_of_generate(client: OpenAI, reference: Any) -> None:
    ids = continued(reference, prompt_of(HELLO), 12)
    answer = ask(client, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.message.content == tokenizer().decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    assert answer.usage.completion_tokens == len(ids) == len(choice.logprobs.content)
    with torch.inference_mode():
        prompt = tokenizer()(prompt_of(HELLO), add_special_tokens=False)["input_ids"]
        table = reference(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    for at, said in enumerate(choice.logprobs.content):
        row = table[len(prompt) - 1 + at]
        assert abs(said.logprob - row.max().item()) < 1e-3
        assert [other.logprob for other in said.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
    assert answer.usage.prompt_tokens == len(prompt)


def test_a_stream_says_the_same(client: OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 3


def test_several_choices(client: OpenAI) -> None:
    same = ask(client, n=2)
    assert same.choices[0].message.content == same.choices[1].message.content == ask(client).choices[0].message.content
    drawn = ask(client, n=4, temperature=2, seed=3)
    assert len({choice.message.content for choice in drawn.choices}) > 1
    assert drawn.usage.completion_tokens > 12


def test_completions(client: OpenAI, reference: Any) -> None:
    ids = continued(reference, "hello the cat", 6)
    made = tokenizer()
    said = made.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    arguments: Any = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    answer = client.completions.create(prompt="hello the cat", echo=True, **arguments)
    assert answer.choices[0].text == "hello the cat" + said
    from_ids = client.completions.create(
        prompt=made("hello the cat", add_special_tokens=False)["input_ids"], **arguments
    )
    assert from_ids.choices[0].text == said
    only = client.completions.create(prompt="hello the cat", echo=True, **(arguments | {"max_tokens": 0}))
    assert (only.choices[0].text, only.usage.completion_tokens) == ("hello the cat", 0)


@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls(client: OpenAI, stream: bool) -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    for choice, names in (("required", {"weather", "clock"}), (named, {"clock"})):
        fields: Any = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 120, "extra_body": THOUGHTLESS}
        if stream:
            parts = [chunk.choices[0] for chunk in ask(client, stream=True, **fields) if chunk.choices]
            calls = [call for part in parts for call in part.delta.tool_calls or []]
            name = next(call.function.name for call in calls if call.function.name)
            text = "".join(call.function.arguments or "" for call in calls if call.index == 0)
            reason = parts[-1].finish_reason
        else:
            answer = ask(client, parallel_tool_calls=False, **fields).choices[0]
            name, text = (getattr(answer.message.tool_calls[0].function, field) for field in ("name", "arguments"))
            reason = answer.finish_reason
        assert name in names
        assert json.loads(text)["city"] in ("Rome", "Oslo")
        assert reason == "tool_calls" or stream


def test_results_of_calls_are_read(client: OpenAI, reference: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages: list[Any] = [
        *HELLO, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "the sun"}
    ]  # fmt: skip
    answer = ask(client, messages=messages, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > len(tokenizer()(prompt_of(HELLO))["input_ids"]) + 20
    del reference


def test_an_answer_by_a_schema(client: OpenAI) -> None:
    said = ask(client, response_format=ANSWER, max_tokens=60, extra_body=THOUGHTLESS).choices[0].message.content
    assert set(json.loads(said)) == {"yes"}


def test_a_schema_holds_behind_the_thinking(client: OpenAI) -> None:
    opened = {"chat_template_kwargs": {"enable_thinking": True}}
    answer = ask(client, response_format=ANSWER, max_tokens=400, temperature=1.5, seed=1, extra_body=opened,
                 logit_bias={str(tokenizer().eos_token_id): -100}).choices[0]  # fmt: skip
    thought = answer.message.model_extra["reasoning_content"]
    assert thought
    if answer.finish_reason == "stop":
        assert set(json.loads(answer.message.content)) == {"yes"}
    else:  # a model that knows no end of its thinking
        assert not answer.message.content


def test_thinking_without_a_grammar(client: OpenAI) -> None:
    answer = ask(client, extra_body={"chat_template_kwargs": {"enable_thinking": True}}).choices[0]
    assert answer.message.model_extra["reasoning_content"]
    assert not answer.message.content
    assert ask(client).choices[0].message.content


def test_tokens_and_back(url: str) -> None:
    def post(path: str, **body: Any) -> Any:
        response = httpx2.post(f"{url}{path}", json={"model": "tiny", **body})
        assert response.status_code == 200, response.text
        return response.json()

    made = tokenizer()
    found = post("/tokenize", prompt="the cat", return_token_strs=True)
    assert found["tokens"] == made("the cat", add_special_tokens=False)["input_ids"]
    assert found["token_strs"] == made.convert_ids_to_tokens(found["tokens"])
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 1024)
    found = post("/tokenize", messages=HELLO)
    assert post("/detokenize", tokens=found["tokens"])["prompt"] == prompt_of(HELLO)
    shorter = post("/tokenize", messages=HELLO, add_generation_prompt=False)
    assert shorter["count"] < found["count"]
    assert post("/tokenize", prompt="the " * 2000)["count"] > 1024
    wrong = httpx2.post(f"{url}/detokenize", json={"model": "tiny", "tokens": [10**9]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")


def test_what_is_too_long_is_refused(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, messages=[{"role": "user", "content": "the cat " * 600}], stream=stream)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="the cat " * 600)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def running(url: str) -> float:
    lines = httpx2.get(f"{url}/metrics", timeout=120).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if "num_requests_running{" in line)


def test_a_client_that_leaves_frees_its_place(client: OpenAI, url: str) -> None:
    stream = ask(client, stream=True, max_tokens=480, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while running(url):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    lines = httpx2.get(f"{url}/metrics", timeout=120).text.splitlines()
    assert any("generation_tokens_total{" in line for line in lines)


def test_the_model_is_described(client: OpenAI) -> None:
    extra = client.models.retrieve("tiny").model_dump()
    assert json.dumps(extra).count("vllm") >= 1
