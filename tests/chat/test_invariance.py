"""In bfloat16 on a CPU an answer is the same bit for bit in any company, so that a seed repeats it under load, too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from chat.engine_kit import EXPERTS, SHAPE, reference
from quintet_chat.backends.layers import fuse
from quintet_chat.backends.packing import finish
from quintet_chat.engine.runner import Piece, Runner

PROMPTS = [[3 + (7 * row + 3 * i) % 250 for i in range(30 + 9 * row)] for row in range(9)]
LONG = [3 + (11 * i) % 250 for i in range(300)]
"""So long that attention's sums depend on how many keys are read, unless there are always as many."""


WIDE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "initializer_range": 0.06}
"""Deep, and attention undecided: otherwise sums come out the same in nearly any order."""


BUILDS: dict[str, dict[str, Any]] = {
    "llama-64": {"head_dim": 64},
    "llama-128": {"head_dim": 128},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"head_dim": 64, **EXPERTS},
    "glm4": {"head_dim": 64, "pad_token_id": 0},
    "olmo2": {},
    "gemma3_text": {"head_dim": 256, "sliding_window": 32},
}
"""A norm per head, experts, some dimensions turned, a norm of all heads, wide heads and a window."""


def wide_model(kind: str) -> Any:
    torch.manual_seed(0)
    fields = {**SHAPE, **WIDE, **BUILDS[kind]}
    config = transformers.AutoConfig.for_model(kind.split("-")[0], vocab_size=330, **fields)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(params=["mistral", "qwen2", *BUILDS], scope="module")
def runner(request: pytest.FixtureRequest) -> Any:
    model = wide_model(request.param) if request.param in BUILDS else copy.deepcopy(reference(request.param))
    model.bfloat16()
    fused = fuse(model)
    finish(model, lambda: None)
    if not fused or not products_are_the_same(model):
        pytest.skip("on this CPU a matrix product's rows depend on how many there are")
    made = Runner(model, 9, 512, 9 * 512)
    made.slots.reserve([400] * 9)
    return made


@torch.inference_mode()
def products_are_the_same(model: Any) -> bool:
    for product in (product for module in model.modules() for product in getattr(module, "products", [])):
        rows = torch.randn(400, product.width).bfloat16()
        if not all(torch.equal(product(rows[:count])[0], product(rows)[0]) for count in (1, 9, 48)):
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


def test_a_prompt_gives_the_same_bits_at_every_length_of_its_last_piece(runner: Runner) -> None:
    whole = runner.prefill(0, [Piece(0, LONG)])
    done = 0
    for last in (97, 66, 34, 33, 5, 4, 3, 2, 1):
        start = len(LONG) - last
        runner.prefill(1, [Piece(done, LONG[done:start])])
        assert torch.equal(runner.prefill(1, [Piece(start, LONG[start:])])[0], whole[0]), last
        done = start


def test_longer_neighbours_change_no_bits(runner: Runner) -> None:
    for length in (150, 201, 250):
        alone = runner.prefill(0, [Piece(0, LONG[:length])])
        step = runner.decode([7], [length])
        together = runner.prefill(0, [Piece(0, LONG[:length]), Piece(0, LONG)])
        assert torch.equal(together[0], alone[0])
        assert torch.equal(runner.decode([7, 8], [length, 300])[0], step[0])


def test_what_was_generated_gives_the_same_bits_computed_anew(runner: Runner) -> None:
    """As it is when a sequence had to give its slot up, and when the prefix cache holds an answer."""
    prompt, answer = LONG[:37], LONG[200:230]
    runner.prefill(0, [Piece(0, prompt)])
    steps = [runner.decode([token], [37 + place]) for place, token in enumerate(answer)]
    anew = runner.prefill(1, [Piece(0, prompt + answer)])
    assert torch.equal(anew[0], steps[-1][0])
