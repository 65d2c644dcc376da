"""Chat on a GPU: recorded steps, FlashAttention over blocks, several devices. Pretended GPUs will do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from chat.engine_kit import ask, reference, started, submit, tiny_path
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.engine.runner import Runner
from quintet_chat.protocol import Grammar
from quintet_common.models_yml import ModelSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

PROMPTS = [[3 + (7 * row + i * i) % 250 for i in range(20 + 31 * row)] for row in range(5)]
NEW = 24
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def engine_on(device: str = "cuda:0", kind: str = "llama", **fields: Any) -> ChatEngine:
    fields = {"dtype": "float32", "device": device, **fields}
    return started(ModelSpec(id="tiny", kind="chat", path=str(tiny_path(kind)), **fields))


def runner_of(engine: ChatEngine) -> Runner:
    return engine._scheduler._runner


def says_what_generate_says(engine: ChatEngine, kind: str = "llama") -> None:
    model, text = reference(kind), engine._output._token_text
    asked = [
        submit(engine, prompt, max_tokens=NEW, temperature=0.0, ignore_eos=True, logprobs=0)[1] for prompt in PROMPTS
    ]
    for prompt, heard in zip(PROMPTS, asked, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        wanted = [text(token)[0] for token in whole[0, len(prompt) :].tolist()]
        assert [each.token for delta in heard.wait().deltas() for each in delta.logprobs] == wanted


def nothing_is_held(engine: ChatEngine) -> None:
    slots = runner_of(engine).slots
    assert isinstance(slots, BlockCache)
    assert slots.table.used == 0


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "mistral"])
def test_recorded_steps_say_what_generate_says(kind: str) -> None:
    engine = engine_on(kind=kind)
    padded = runner_of(engine).padded
    assert padded is not None
    for _ in range(2):  # the second time behind beginnings that are known
        says_what_generate_says(engine, kind)
    assert padded.works
    assert padded._shapes
    nothing_is_held(engine)


def test_a_mixture_of_experts() -> None:
    says_what_generate_says(engine_on(kind="qwen2_moe"), "qwen2_moe")
    fast = engine_on(kind="qwen2_moe", dtype="bfloat16")
    assert runner_of(fast).padded is not None  # in float32 torch waits for who goes to which expert
    for prompt in PROMPTS:
        assert ask(fast, prompt, max_tokens=NEW, ignore_eos=True).reasons == {0: "length"}
    nothing_is_held(fast)


@two_gpus
def test_a_model_on_another_gpu_than_the_first() -> None:
    engine = engine_on("cuda:1")
    assert runner_of(engine).device == torch.device("cuda:1")
    says_what_generate_says(engine)
    padded = runner_of(engine).padded
    assert padded is not None
    assert padded.works
    nothing_is_held(engine)


@two_gpus
@pytest.mark.parametrize("kind", ["llama", "qwen2-half-sliding", "qwen3_next"])
def test_a_model_that_is_spread_over_two_gpus(kind: str) -> None:
    memory = {0: "450KB", 1: "1GB"}
    engine = engine_on("auto", kind, memory=memory, engine_args={"kv_memory": "16MB"})
    devices = {parameter.device for parameter in runner_of(engine)._model.parameters()}
    assert len(devices) == 2
    assert runner_of(engine).padded is None  # a graph belongs to one device
    for _ in range(2):
        says_what_generate_says(engine, kind)
    nothing_is_held(engine)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2-half-sliding", "qwen3"])
def test_attention_reads_blocks_where_they_lie(kind: str) -> None:
    engine = engine_on(kind=kind, dtype="bfloat16")
    assert runner_of(engine).reading == "flash over blocks"  # which a trial has compared with the plain way
    assert runner_of(engine).padded is not None
    heard = [submit(engine, prompt, n=2, seed=5, max_tokens=40, ignore_eos=True)[1] for prompt in PROMPTS]
    assert all(each.wait().reasons == {0: "length", 1: "length"} for each in heard)
    nothing_is_held(engine)


def test_everything_that_a_request_can_ask_for() -> None:
    engine = engine_on()
    options: list[dict[str, Any]] = [
        {"temperature": 0.8, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "seed": 3},
        {"presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.3, "logit_bias": {7: -100.0}},
        {"logprobs": 3, "stop": ["the"], "stop_token_ids": [20], "min_tokens": 3},
        {"n": 3, "temperature": 1.0, "seed": 1},
        {"grammar": Grammar(type="json_schema", value=SCHEMA), "temperature": 1.0, "max_tokens": 60},
    ]
    asked = [submit(engine, prompt, **each)[1] for prompt in PROMPTS for each in options]
    again = [ask(engine, PROMPTS[0], **options[0]).text() for _ in range(2)]
    for heard in asked:
        assert heard.wait().error is None
    assert {asked[0].text()} == set(again)
    for heard in asked[4::5]:
        if heard.reasons[0] == "stop":
            assert list(json.loads(heard.text())) == ["a"]
    nothing_is_held(engine)


@pytest.mark.skipif(not hasattr(torch.ops.pretend_gpu, "host_reads"), reason="only a pretended GPU counts")
@pytest.mark.parametrize(
    ("fields", "waits"),
    [({"temperature": 0.0}, 1), ({"temperature": 1.0, "top_k": 20}, 1), ({"temperature": 0.0, "logprobs": 5}, 2)],
)
def test_the_host_waits_once_for_each_token(fields: dict[str, Any], waits: int) -> None:
    """And once more for its log probabilities."""
    engine = engine_on()
    fields |= {"max_tokens": NEW, "ignore_eos": True}
    ask(engine, PROMPTS[0], **fields)
    before, steps = torch.ops.pretend_gpu.host_reads(), engine.stats()["decode_steps_total"]
    ask(engine, PROMPTS[0], **fields)
    assert engine.stats()["decode_steps_total"] - steps == NEW - 1
    assert torch.ops.pretend_gpu.host_reads() - before == waits * NEW
