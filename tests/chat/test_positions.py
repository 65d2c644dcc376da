"""Models with two sets of rotation factors: whatever shares a pass and however a prompt is cut, one set is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from chat.engine_kit import SHAPE
from quintet_chat.backends.positions import settle_factors
from quintet_chat.engine.runner import Piece, Runner

ORIGINAL = 64
PROMPT = [3 + (7 * i) % 250 for i in range(ORIGINAL + 10)]
FACTORS = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0] * 8, "long_factor": [1.0 + 2 * i for i in range(8)],
}  # fmt: skip


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    more = {"pad_token_id": 0, "original_max_position_embeddings": ORIGINAL, "rope_parameters": FACTORS}
    config = transformers.AutoConfig.for_model(kind, vocab_size=330, **SHAPE, **more)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def runner_of(model: Any) -> Runner:
    runner = Runner(model, 2, 256, 512)
    runner.slots.reserve([100, 100])
    return runner


@pytest.mark.parametrize("kind", ["phi3", "llama"])
@torch.inference_mode()
def test_a_short_text_says_the_same_beside_a_long_one(kind: str) -> None:
    model = model_of(kind)
    whole = model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    assert settle_factors(model, 256) == 1
    alone = runner_of(model)
    alone.prefill(0, [Piece(0, PROMPT[:9])])
    expected = alone.decode([6], [9])[0].clone()
    runner = runner_of(model)
    runner.prefill(0, [Piece(0, PROMPT[:40])])
    torch.testing.assert_close(runner.prefill(0, [Piece(40, PROMPT[40:])])[0], whole, rtol=1e-3, atol=1e-3)
    runner.prefill(1, [Piece(0, PROMPT[:9])])
    said = runner.decode([5, 6], [len(PROMPT), 9])[1]
    torch.testing.assert_close(said, expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_a_context_within_the_original_length_has_the_short_factors() -> None:
    model = model_of("phi3")
    short = model(input_ids=torch.tensor([PROMPT[:9]])).logits
    assert settle_factors(model, ORIGINAL) == 0
    assert torch.equal(model(input_ids=torch.tensor([PROMPT[:9]])).logits, short)
