"""What a decode step of the chat engine takes with fused layers, as a share of its CPU time with packed weights alone.

    python bench/chat/layers.py

Random models in bfloat16, one thread, 8,000 words, minima of 24 steps in alternation. The figures are a table of
docs/chat.md.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
import transformers
from quintet_chat.backends import layers, packing
from quintet_chat.engine.runner import Piece, Runner

ROWS, STEPS, CONTEXT = (1, 8, 32), 24, 512
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128,
    },
    "glm": {
        "hidden_size": 1024, "intermediate_size": 3424, "num_hidden_layers": 24, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 128, "pad_token_id": 0,
    },
    "gemma3_text": {
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
    },
}  # fmt: skip
"""Qwen3-0.6B, GLM-4's build in a smaller width, and Gemma 3 270M."""


def runner_of(model: Any, *, fused: bool) -> Runner:
    """As the loader makes it, with ``ROWS[-1]`` slots that hold one token each."""
    runner = Runner(model, ROWS[-1], CONTEXT, ROWS[-1] * CONTEXT)
    runner.check()
    if fused and not layers.fuse(model):
        raise RuntimeError("no layer was replaced")
    packing.finish(model, runner.check)
    runner.slots.release()
    assert runner.slots.reserve([CONTEXT // 2] * ROWS[-1])
    for row in range(ROWS[-1]):
        runner.prefill(row, [Piece(0, [1])])
    return runner


def shares(kind: str) -> list[float]:
    """By the numbers of ``ROWS``."""
    config = transformers.AutoConfig.for_model(kind, vocab_size=8000, max_position_embeddings=CONTEXT, **SHAPES[kind])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    runners = {fused: runner_of(copy.deepcopy(model), fused=fused) for fused in (False, True)}
    found = []
    for rows in ROWS:
        least = dict.fromkeys(runners, float("inf"))
        for place in range(1, STEPS + 1):
            for fused, runner in runners.items():
                before = time.process_time()
                runner.decode([1] * rows, [place] * rows)
                least[fused] = min(least[fused], time.process_time() - before)
        found.append(least[True] / least[False])
    return found


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'model':16}" + "".join(f"{rows:4} rows" for rows in ROWS))
    for kind in SHAPES:
        print(f"{kind:16}" + "".join(f"{share:9.2f}" for share in shares(kind)), flush=True)


if __name__ == "__main__":
    main()
