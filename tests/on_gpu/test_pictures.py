"""Pictures on a GPU and on two: what a model says of them is what ``generate()`` says. Pretended GPUs will do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chat import picture_models as tiny
from chat.engine_kit import started, submit
from chat.test_images import CONVERSATIONS, IMAGES, NEW, said
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.engine import ChatEngine
from quintet_common.models_yml import ModelSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def engine_on(device: str, kind: str, **fields: Any) -> ChatEngine:
    args = {"prefill_chunk": 16, "kv_memory": "16MB"}
    path = str(tiny.path(kind))
    return started(
        ModelSpec(id="tiny", kind="multimodal", path=path, dtype="float32", device=device, engine_args=args, **fields)
    )


def says_what_generate_says(engine: ChatEngine, kind: str) -> None:
    """Alone, then together behind what is known, in two choices each."""
    text = engine._output._token_text
    wanted = [[text(token)[0] for token in tiny.generate(kind, each, IMAGES, NEW)] for each in CONVERSATIONS]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": NEW, "ignore_eos": True, "logprobs": 0, "images": IMAGES}
    assert [said(submit(engine, messages=each, **asked)[1]) for each in CONVERSATIONS] == wanted
    together = [submit(engine, messages=each, n=2, **asked)[1] for each in CONVERSATIONS * 2]
    for index in range(2):
        assert [said(heard, index) for heard in together] == wanted * 2
    slots = engine._scheduler._runner.slots
    assert isinstance(slots, BlockCache)
    assert slots.table.used == 0


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl"])
def test_recorded_steps_behind_pictures(kind: str) -> None:
    engine = engine_on("cuda:0", kind)
    says_what_generate_says(engine, kind)
    padded = engine._scheduler._runner.padded
    assert padded is not None
    assert padded.works
    assert padded._shapes


def engine_of_which_is_there(share: float, kind: str, rest: int | str) -> ChatEngine:
    """A ``share`` of the model is on the first GPU, the rest elsewhere."""
    size = sum(parameter.nbytes for parameter in tiny.reference(kind)[0].parameters())
    engine = engine_on("auto", kind, memory={0: f"{int(size * share) // 1000}KB", rest: "1GB"})
    assert len({parameter.device for parameter in engine._scheduler._runner._model.parameters()}) == 2
    return engine


@two_gpus
@pytest.mark.parametrize(
    ("kind", "share"), [("qwen3_vl", 0.3), ("qwen3_vl", 0.5), ("gemma4", 0.5), ("gemma4 e2b", 0.7)]
)
def test_a_model_over_two_gpus(kind: str, share: float) -> None:
    """The vision tower and the embeddings are on different ones, or parts of the tower, or parts of the text model."""
    says_what_generate_says(engine_of_which_is_there(share, kind, 1), kind)


def test_embeddings_that_are_fetched_from_memory() -> None:
    engine = engine_of_which_is_there(0.3, "qwen3_vl", "cpu")
    assert engine.info["device"] == "cuda:0"  # type: ignore[attr-defined]
    says_what_generate_says(engine, "qwen3_vl")
