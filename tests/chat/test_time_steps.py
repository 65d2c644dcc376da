"""Nemotron-H says the same of a text whichever of its tokens came as a prompt."""

from __future__ import annotations

import copy

import torch
from chat.engine_kit import reference, tiny_path
from quintet_chat.backends.time_steps import settle_limits
from quintet_chat.engine.runner import Piece, Runner
from transformers import AutoModelForCausalLM

TEXT = [3 + 7 * number * number % 250 for number in range(60)]


def apart(model: AutoModelForCausalLM, cuts: list[int]) -> float:
    """How far logits behind a prompt in pieces, and a step for each further token, are from those of the whole text."""
    runner = Runner(model, 1, 512, 512)
    assert runner.slots.reserve([len(TEXT)])
    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([TEXT]), use_cache=False).logits[0, cuts[-1] - 1 :]  # type: ignore[operator]
    pieces = [runner.prefill(0, [Piece(start, TEXT[start:end])]) for start, end in zip([0, *cuts], cuts, strict=False)]
    steps = [runner.decode([TEXT[place]], [place]) for place in range(cuts[-1], len(TEXT))]
    return float((torch.cat([pieces[-1], *steps]) - whole).abs().max())


def test_prompts_and_answers_have_the_same_limits() -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path("nemotron_h"), dtype=torch.float32).eval()
    assert settle_limits(copy.deepcopy(model)) == 2
    assert apart(model, [40]) > 0.01, "transformers keeps to the configuration by now"
    settle_limits(model)
    for cuts in ([40], [16, 32, 40], [1, 2, 3, 7]):
        assert apart(model, cuts) < 2e-3


def test_others_are_left_as_they_are() -> None:
    for kind in ("granitemoehybrid", "llama", "qwen3_5_text"):
        assert settle_limits(reference(kind)) == 0
