"""Whatever a sequence shares its batch with and whatever was known of it, its greedy tokens are ``generate()``'s."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from chat.blocks_kit import PAGINGS, with_paging
from chat.engine_kit import DEVICE, KINDS, STATEFUL, Heard, reference, started, submit, tiny_path, tiny_spec
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.engine.snapshots import LEAST
from quintet_chat.protocol import Started
from transformers import AutoTokenizer

NEW = 20


def generate(kind: str, prompt: list[int], new: int = NEW) -> list[int]:
    """Greedy tokens by transformers, without stopping."""
    ids = torch.tensor([prompt])
    model = reference(kind)
    model.generation_config.eos_token_id = None
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def greedy(engine: ChatEngine, prompt: list[int], new: int = NEW) -> Heard:
    return submit(engine, prompt, temperature=0, max_tokens=new, ignore_eos=True, logprobs=1)[1]


def said(heard: Heard, index: int = 0) -> list[str]:
    assert heard.wait().error is None
    return [logprob.token for delta in heard.deltas(index) for logprob in delta.logprobs]


def cached(heard: Heard) -> int:
    return next(event.cached_tokens for event in heard.events if isinstance(event, Started))


def prompts(vocabulary: int) -> list[list[int]]:
    """From one token to several times the prefill chunk and the attention window."""
    chooser = random.Random(1)
    return [[chooser.randrange(3, vocabulary) for _ in range(length)] for length in (1, 3, 7, 8, 9, 20, 33, 70)]


GATHERED, FLASHED = "blocks, gathered", "blocks, read by the table"
CASES = [(kind, "pages") for kind in KINDS] + [
    *[(kind, GATHERED) for kind in ("gemma2", "llama4_text", "falcon_h1", "deepseek_v32")],
    *[(kind, FLASHED) for kind in ("mistral", "qwen2-half-sliding")],
]
"""In blocks every way of mixing what layers see; the other families differ in what has no part in it."""


@pytest.mark.parametrize(("kind", "paging"), CASES)
def test_greedy_tokens_are_those_of_generate(kind: str, paging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_paging(monkeypatch, PAGINGS[paging])
    engine = started(tiny_spec(kind, max_batch=5, engine_args={"prefill_chunk": 16}))
    vocabulary = len(AutoTokenizer.from_pretrained(tiny_path(kind)))
    inputs = prompts(vocabulary)
    answers = [generate(kind, prompt) for prompt in inputs]

    def texts(tokens: list[int]) -> list[str]:
        return [engine._output._token_text(token)[0] for token in tokens]

    expected = [texts(answer) for answer in answers]
    alone = [greedy(engine, prompt) for prompt in inputs]
    assert [said(heard) for heard in alone] == expected
    assert [cached(heard) for heard in alone] == [0] * len(inputs)
    together = [greedy(engine, prompt) for prompt in inputs]
    assert [said(heard) for heard in together] == expected
    margin = 16 if kind in STATEFUL else 1
    known = [enough(kind, (len(prompt) - margin) // 16 * 16) for prompt in inputs]
    assert [cached(heard) for heard in together] == known
    # The next turn of each conversation finds the answer, too, but for its last token, which was never computed.
    turns = [prompt + answer + prompt[:5] for prompt, answer in zip(inputs, answers, strict=True)]
    following = [greedy(engine, turn) for turn in turns]
    assert [said(heard) for heard in following] == [texts(generate(kind, turn)) for turn in turns]
    whole = 1 if kind in STATEFUL else 16
    known = [enough(kind, (len(prompt) + NEW - 1) // whole * whole) for prompt in inputs]
    assert [cached(heard) for heard in following] == known
    nothing_is_held(engine, kind, paging)


@pytest.mark.parametrize("paging", PAGINGS)
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "qwen3_5_text"])
def test_greedy_tokens_are_those_of_generate_after_an_eviction(
    kind: str, paging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With slots as on a CPU, and as on a GPU but for the recording of steps."""
    per_token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head size, bytes
    tokens = 220 if kind in STATEFUL else 320
    small: dict[str, Any] = {"kv_memory": str(tokens * per_token), "prefix_cache": "off", "prefill_chunk": 16}
    with_paging(monkeypatch, PAGINGS[paging])
    engine = started(tiny_spec(kind, max_batch=5, engine_args=small))
    inputs = [prompt for prompt in prompts(200) if len(prompt) > 8] * 2
    text = engine._output._token_text
    expected = [[text(token)[0] for token in generate(kind, prompt, 60)] for prompt in inputs]
    together = [greedy(engine, prompt, 60) for prompt in inputs]
    assert [said(heard) for heard in together] == expected
    assert engine.stats()["preemptions_total"] > 0
    nothing_is_held(engine, kind, paging)


def enough(kind: str, known: int) -> int:
    """States are kept of no fewer tokens than a copy is worth."""
    return known if kind not in STATEFUL or known >= LEAST else 0


def nothing_is_held(engine: ChatEngine, kind: str, paging: str) -> None:
    """Afterwards, and attention was computed as it should have been."""
    runner = engine._scheduler._runner
    blocks = paging != "pages" or DEVICE != "cpu"
    assert isinstance(runner.slots, BlockCache) == blocks
    if DEVICE == "cpu":  # a GPU does not record experts in float32
        assert (runner.padded is not None) == (blocks and kind not in STATEFUL)
    flashed = paging == FLASHED and kind not in ("gemma2", "llama4_text")
    assert (runner.reading == "flash over blocks") == flashed
    if isinstance(runner.slots, BlockCache):
        assert runner.slots.table.used == 0
