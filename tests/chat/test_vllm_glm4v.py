"""glm-4v-9b's layout through vLLM and our API, on a tiny random checkpoint: no code from its folder is run.

Runs where QUINTET_VLLM_PYTHON names an interpreter that has vLLM; its torchvision, which it needs for pictures, may be
in the folder QUINTET_TORCHVISION instead.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from chat import glm4v_tiny
from chat.engine_kit import ask as ask_engine
from chat.engine_kit import started
from chat.glm4v_tiny import CONFIG, MARKS, PLACES, greedy, png, text_model
from chat.vllm_models import has_torchvision, needs_vllm, served, spec_of
from openai import OpenAI
from PIL import Image
from quintet_chat.backends.chatglm_tokenizer import load_tokenizer
from quintet_chat.backends.glm4v import SeeingGlm
from quintet_common.models_yml import ModelSpec

pytestmark = [needs_vllm, has_torchvision]
TOOLS: Any = [
    {"type": "function", "function": {"name": "look", "parameters": {
        "type": "object", "properties": {"at": {"enum": ["cat", "dog"]}}, "required": ["at"],
        "additionalProperties": False}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return glm4v_tiny.picture()


@pytest.fixture(scope="module")
def model() -> Any:
    return text_model()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm-4v")
    glm4v_tiny.write(folder, model)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUINTET_CACHE", str(tmp_path_factory.mktemp("cache")))
        with served(spec_of(folder, id="glm-4v-9b", kind="multimodal", engine="vllm", sees=True)) as url:
            yield url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def part_of(picture: Image.Image) -> dict[str, Any]:
    data = base64.b64encode(png(picture)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def ask(client: OpenAI, *pictures: Image.Image, **fields: Any) -> Any:
    content = [{"type": "text", "text": "what is it"}, *map(part_of, pictures)]
    common = {"model": "glm-4v-9b", "messages": [{"role": "user", "content": content}], "temperature": 0}
    return client.chat.completions.create(**({**common, "max_tokens": 10} | fields))


def test_a_picture_is_seen_as_the_original_sees_it(
    client: OpenAI, model: Any, folder: Path, picture: Image.Image
) -> None:
    tokenizer = load_tokenizer("glm", folder)
    prompt = tokenizer.encode(f"[gMASK]<sop><|user|>\n{MARKS}what is it<|assistant|>")
    said, rows = greedy(model, prompt, picture, 10, in_turn=True)
    end = next((at for at, token in enumerate(said) if token in CONFIG["eos_token_id"]), len(said))
    said, rows = said[:end], rows[:end]
    answer = ask(client, picture, logprobs=True)
    found = [each.logprob for each in answer.choices[0].logprobs.content]
    assert found[:end] == pytest.approx(rows.tolist(), abs=2e-3)
    text = tokenizer.decode(said, skip_special_tokens=True).strip().rstrip("\ufffd")
    assert answer.choices[0].message.content.strip() == text
    assert answer.usage.prompt_tokens > PLACES + 2
    other = ask(client, picture.transpose(Image.Transpose.ROTATE_90), logprobs=True)
    assert [each.logprob for each in other.choices[0].logprobs.content] != pytest.approx(found, abs=1e-2)


def test_our_own_engine_says_the_same_if_it_counts_places_as_vllm_does(
    client: OpenAI, folder: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two towers that were written independently of each other, and all that is behind them."""
    monkeypatch.setattr(SeeingGlm, "numbers", lambda _self, ids: torch.arange(len(ids)))
    ours = started(ModelSpec(id="ours", kind="multimodal", path=str(folder), dtype="float32", device="cpu"))
    content = [{"type": "text", "text": "what is it"}, {"type": "image", "image": 0}]
    answer = ask(client, picture, logprobs=True, max_tokens=20).choices[0]
    theirs = [each.logprob for each in answer.logprobs.content]
    sampling: Any = {"temperature": 0, "max_tokens": 20, "logprobs": 1}
    heard = ask_engine(ours, messages=[{"role": "user", "content": content}], images=[png(picture)], **sampling)
    found = [each.logprob for delta in heard.deltas() for each in delta.logprobs]
    assert len(theirs) > 3
    assert found[: len(theirs)] == pytest.approx(theirs, abs=3e-3)


def test_a_stream_and_text_alone(client: OpenAI, picture: Image.Image) -> None:
    whole = ask(client, picture).choices[0].message.content
    chunks = list(ask(client, picture, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert ask(client).usage.prompt_tokens < PLACES + 2


def test_a_call_about_a_picture_and_its_result(client: OpenAI, picture: Image.Image) -> None:
    answer = ask(client, picture, tools=TOOLS, tool_choice="required", max_tokens=60).choices[0]
    (call,) = answer.message.tool_calls
    assert (answer.finish_reason, call.function.name) == ("tool_calls", "look")
    assert json.loads(call.function.arguments)["at"] in ("cat", "dog")
    chunks = [chunk.choices[0] for chunk in ask(
        client, picture, tools=TOOLS, tool_choice="required", max_tokens=60, stream=True
    ) if chunk.choices]  # fmt: skip
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert json.loads("".join(piece.function.arguments or "" for piece in pieces)) == json.loads(
        call.function.arguments
    )
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "what"}, part_of(picture)]},
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "a cat"},
    ]
    assert ask(client, messages=messages, tools=TOOLS).choices[0].message.role == "assistant"


def test_two_pictures_are_one_too_many(client: OpenAI, picture: Image.Image) -> None:
    with pytest.raises(openai.BadRequestError, match="image"):
        ask(client, picture, picture)


def test_the_prompt_is_written_as_the_model_learnt_it(url: str, folder: Path, picture: Image.Image) -> None:
    content = [{"type": "text", "text": "what"}, part_of(picture)]
    found = httpx2.post(f"{url}/tokenize", json={"messages": [{"role": "user", "content": content}]}, timeout=60).json()
    ids = load_tokenizer("glm", folder).encode(f"[gMASK]<sop><|user|>\n{MARKS}what<|assistant|>")
    at = ids.index(CONFIG["pad_token_id"])
    assert found["tokens"] == [*ids[:at], *[CONFIG["pad_token_id"]] * PLACES, *ids[at + 1 :]]
