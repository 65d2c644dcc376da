"""Whatever a sequence shares its batch with, greedy tokens are those of transformers' own ``generate``."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from chat.engine_kit import KINDS, Heard, reference, started, submit, tiny_path, tiny_spec
from quintet_chat.engine.engine import ChatEngine
from transformers import AutoTokenizer

NEW = 24


def generate(kind: str, prompt: list[int]) -> list[int]:
    """Greedy tokens by transformers, without stopping."""
    ids = torch.tensor([prompt])
    out = reference(kind).generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def greedy(engine: ChatEngine, prompt: list[int]) -> Heard:
    return submit(engine, prompt, temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=1)[1]


def said(heard: Heard) -> list[str]:
    assert heard.wait().error is None
    return [logprob.token for delta in heard.deltas() for logprob in delta.logprobs]


def prompts(vocabulary: int) -> list[list[int]]:
    """From one token to several times the prefill chunk and the attention window."""
    chooser = random.Random(1)
    return [[chooser.randrange(3, vocabulary) for _ in range(length)] for length in (1, 3, 7, 8, 9, 20, 33, 70)]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_generate_alone_and_in_a_batch(kind: str) -> None:
    engine = started(tiny_spec(kind, max_batch=5, engine_args={"prefill_chunk": 16}))
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_path(kind))
    inputs = prompts(len(tokenizer))
    text = engine._output._token_text
    expected = [[text(token)[0] for token in generate(kind, prompt)] for prompt in inputs]
    alone = [said(greedy(engine, prompt)) for prompt in inputs]
    assert alone == expected
    together = [greedy(engine, prompt) for prompt in inputs]
    assert [said(heard) for heard in together] == expected
