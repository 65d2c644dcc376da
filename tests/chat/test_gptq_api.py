"""Qwen2-57B-A14B-Instruct-GPTQ-Int4's layout through the API, by our own engine: chat, streams, and calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from chat import gptq_tiny
from chat.engine_kit import tokenizer
from chat.serving import serving
from openai import OpenAI
from quintet_chat.app import create_app
from quintet_common.models_yml import ModelSpec

MODEL = "Qwen2-57B-A14B-Instruct-GPTQ-Int4"
USER: list[Any] = [{"role": "user", "content": "hello"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": False}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gptq")


@pytest.fixture(scope="module")
def meant(folder: Path) -> Any:
    """The numbers of the checkpoint, in float32 and transformers' own layers."""
    return gptq_tiny.write(folder, experts=True)


@pytest.fixture(scope="module")
def url(folder: Path, meant: Any) -> Iterator[str]:  # noqa: ARG001  the folder is written by then
    spec = ModelSpec(
        id=MODEL, kind="chat", path=str(folder), engine="transformers", dtype="float32", device="cpu",
        engine_args={"tool_family": "hermes"},
    )  # fmt: skip
    with serving(create_app("chat", [spec], "quintet_chat.worker:create_engine")) as url:
        yield url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def test_an_answer_and_a_stream_are_those_of_generate(url: str, client: OpenAI, meant: Any) -> None:
    prompt = httpx2.post(f"{url}/v1/tokenize", json={"model": MODEL, "messages": USER}, timeout=60).json()["tokens"]
    said = meant.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    expected = tokenizer().decode(said, skip_special_tokens=True).rstrip("\ufffd")
    answer = client.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_tokens=12)
    assert answer.choices[0].message.content == expected
    chunks = client.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected


def test_a_call_its_stream_and_its_result(client: OpenAI) -> None:
    required: Any = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    answer = client.chat.completions.create(model=MODEL, messages=USER, **required).choices[0]
    assert answer.message.tool_calls
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert (answer.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    chunks = client.chat.completions.create(model=MODEL, messages=USER, stream=True, **required)
    pieces = [piece for chunk in chunks if chunk.choices for piece in chunk.choices[0].delta.tool_calls or []]
    streamed = "".join(piece.function.arguments or "" for piece in pieces if piece.function and piece.index == 0)
    assert json.loads(streamed) == json.loads(call.function.arguments)
    result: list[Any] = [
        *USER,
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    after = client.chat.completions.create(model=MODEL, messages=result, tools=TOOLS, max_tokens=5)
    assert after.choices[0].message.role == "assistant"
