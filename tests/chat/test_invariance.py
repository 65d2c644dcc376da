"""In bfloat16 on a CPU an answer is the same bit for bit in any company, so that a seed repeats it under load, too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from chat.engine_kit import reference
from quintet_chat.backends.packing import PackedLinear, pack
from quintet_chat.engine.runner import Piece, Runner

PROMPTS = [[3 + (7 * row + 3 * i) % 250 for i in range(30 + 9 * row)] for row in range(9)]


@pytest.fixture(params=["llama", "mistral"])
def runner(request: pytest.FixtureRequest) -> Any:
    model = copy.deepcopy(reference(request.param)).bfloat16()
    if not pack(model) or not products_are_the_same(model):
        pytest.skip("on this CPU a matrix product's rows depend on how many there are")
    made = Runner(model, 9, 256, 9 * 256)
    made.slots.reserve([200] * 9)
    return made


@torch.inference_mode()
def products_are_the_same(model: Any) -> bool:
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            rows = torch.randn(400, layer.in_features).bfloat16()
            if not all(torch.equal(layer(rows[:count])[0], layer(rows)[0]) for count in (1, 9, 48)):
                return False
    return True


def test_a_step_gives_the_same_bits_whatever_the_batch(runner: Runner) -> None:
    alone = runner.prefill(0, [Piece(0, PROMPTS[0])])
    step = runner.decode([7], [len(PROMPTS[0])])
    together = runner.prefill(0, [Piece(0, prompt) for prompt in PROMPTS])
    assert torch.equal(together[0], alone[0])
    assert torch.equal(runner.decode([7] * 9, [len(prompt) for prompt in PROMPTS])[0], step[0])


def test_a_prompt_gives_the_same_bits_whole_and_in_pieces(runner: Runner) -> None:
    whole = runner.prefill(0, [Piece(0, PROMPTS[8])])
    for cut in (16, 48, 77):
        runner.prefill(1, [Piece(0, PROMPTS[8][:cut])])
        assert torch.equal(runner.prefill(1, [Piece(cut, PROMPTS[8][cut:])])[0], whole[0])
