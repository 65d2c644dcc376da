"""The sampler against the plainest way to do the same: sort everything, cut, walk down with one random number."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from quintet_chat.engine.request import Request, Sequence
from quintet_chat.engine.sampler import sample
from quintet_chat.protocol import Generate, Sampling

VOCABULARY = 5000


class Drawn(Sequence):
    """A sequence whose next random number is given."""

    def __init__(self, draw: float, tokens: list[int] | None = None, **sampling: Any) -> None:
        body = Generate(sampling=Sampling(**sampling))
        request = Request(1, body, emit=None, arrived=0, prompt=[1, 2, 3], stop_ids=frozenset({9}))  # type: ignore[arg-type]
        super().__init__(request, 0)
        self.given = draw
        for token in tokens or []:
            self.tokens.append(token)
            self.counts[token] += 1

    def draw(self) -> float:
        return self.given


def plainly(logits: torch.Tensor, draw: float, rule: Sampling) -> int:
    probabilities, ids = (logits.double() / rule.temperature).softmax(-1).sort(descending=True)
    if rule.top_k:
        probabilities[rule.top_k :] = 0
        probabilities /= probabilities.sum()
    kept = probabilities.clone()
    if rule.top_p < 1:
        kept[(probabilities.cumsum(-1) - probabilities) >= rule.top_p] = 0
    kept[probabilities < rule.min_p * probabilities[0]] = 0
    cumulative = (kept / kept.sum()).cumsum(-1)
    return int(ids[int((cumulative <= draw).sum())])


RULES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 100},
    {"top_k": 4000, "temperature": 2.0},
    {"top_p": 0.1},
    {"top_p": 0.9, "temperature": 2.0},
    {"top_p": 0.95, "top_k": 30},
    {"top_p": 0.5, "top_k": 300, "temperature": 2.0},
    {"min_p": 0.1},
    {"min_p": 0.0001, "temperature": 2.0},
    {"min_p": 0.05, "top_p": 0.8, "top_k": 50},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("spread", [0.5, 4.0], ids=["flat", "peaked"])
def test_one_row_is_drawn_as_by_a_full_sort(rule: dict[str, Any], spread: float) -> None:
    torch.manual_seed(3)
    logits = torch.randn(VOCABULARY) * spread
    draws = [(step + 0.5) / 40 for step in range(40)]
    sequences = [Drawn(draw, **rule) for draw in draws]
    got = [choice.token for choice in sample(logits.repeat(len(draws), 1), list(sequences))]
    expected = [plainly(logits, draw, sequences[0].request.sampling) for draw in draws]
    same = sum(a == b for a, b in zip(got, expected, strict=True))
    # A draw within float32's rounding of the border between two tokens may fall on either side.
    assert same >= 39


def test_rows_of_a_mixed_batch_do_not_touch_each_other() -> None:
    torch.manual_seed(4)
    logits = torch.randn(len(RULES) + 1, VOCABULARY) * 2
    together: list[Sequence] = [Drawn(0.37, **rule) for rule in RULES] + [Drawn(0.5, temperature=0)]
    tokens = [choice.token for choice in sample(logits.clone(), together)]
    alone = [sample(logits[row : row + 1].clone(), [together[row]])[0].token for row in range(len(together))]
    assert tokens == alone
    assert tokens[-1] == int(logits[-1].argmax())


def test_frequencies_follow_the_distribution() -> None:
    chooser = random.Random(5)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(4000, 1)
    tokens = [choice.token for choice in sample(logits, [Drawn(chooser.random()) for _ in range(4000)])]
    expected = torch.tensor([2.0, 1.0, 0.0, -1.0]).softmax(-1)
    for token in range(4):
        assert tokens.count(token) / 4000 == pytest.approx(float(expected[token]), abs=0.03)


def seeded(logits: torch.Tensor, count: int, index: int = 0, **rule: Any) -> list[int]:
    """So many tokens, one after the other, of one choice of a request with seed 7."""
    sequence = Sequence(Drawn(0.0, **{"seed": 7, **rule}).request, index)
    return [sample(logits.clone()[None], [sequence])[0].token for _ in range(count)]


def test_a_seed_repeats_its_stream_and_choices_have_their_own() -> None:
    logits = torch.randn(VOCABULARY)
    assert seeded(logits, 20) == seeded(logits, 20)
    assert seeded(logits, 20) != seeded(logits, 20, index=1)
    assert seeded(logits, 20) != seeded(logits, 20, seed=8)
    assert seeded(logits, 20, seed=None) != seeded(logits, 20, seed=None)
    assert len(seeded(logits, 1, seed=(1 << 63) - 1, index=3)) == 1


def test_a_seed_follows_the_distribution() -> None:
    tokens = seeded(torch.tensor([2.0, 1.0, 0.0, -1.0] + [-30.0] * 60), 4000)
    expected = torch.tensor([2.0, 1.0, 0.0, -1.0]).softmax(-1)
    for token in range(4):
        assert tokens.count(token) / 4000 == pytest.approx(float(expected[token]), abs=0.03)


def test_rounding_does_not_change_what_a_seed_gives() -> None:
    logits = torch.randn(VOCABULARY)
    assert seeded(logits, 200, temperature=2.0) == seeded(logits + 1e-6 * torch.randn(VOCABULARY), 200, temperature=2.0)


@pytest.mark.parametrize(
    "rule", [{"top_k": 5}, {"top_p": 0.4}, {"min_p": 0.3}, {"top_k": 9, "top_p": 0.8}, {"top_p": 0.999}], ids=str
)
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_a_seed_stays_within_the_cuts(rule: dict[str, Any], spread: float) -> None:
    torch.manual_seed(5)
    logits = torch.randn(VOCABULARY) * spread
    allowed = {plainly(logits, (step + 0.5) / 400, Sampling(**rule)) for step in range(400)}
    last = plainly(logits, 1 - 1e-12, Sampling(**rule))
    for token in seeded(logits, 100, **rule):
        assert token in allowed or logits[token] >= logits[last] - 1e-4


def chosen(logits: list[float], tokens: list[int] | None = None, **rule: Any) -> int:
    return sample(torch.tensor([logits]), [Drawn(0.0, tokens, temperature=0, **rule)])[0].token


def test_presence_counts_a_generated_token_once_and_frequency_every_time() -> None:
    logits = [0.0] * 4 + [5.0, 4.5]
    assert chosen(logits, [4, 4]) == 4
    assert chosen(logits, [4, 4], presence_penalty=0.4) == 4
    assert chosen(logits, [4, 4], presence_penalty=0.6) == 5
    assert chosen(logits, [4, 4], frequency_penalty=0.2) == 4
    assert chosen(logits, [4, 4], frequency_penalty=0.3) == 5


def test_presence_and_frequency_leave_the_prompt_alone_but_repetition_does_not() -> None:
    logits = [0.0, 5.0, 0.0, 0.0, 4.5]  # token 1 is in the prompt
    assert chosen(logits, presence_penalty=2.0, frequency_penalty=2.0) == 1
    assert chosen(logits, repetition_penalty=1.2) == 4
    assert chosen([-9.0, -1.0, -9.0, -9.0, -1.1], repetition_penalty=1.2) == 4


def test_tokens_of_pictures_may_be_beyond_the_vocabulary() -> None:
    assert chosen([0.0, 5.0, 0.0, 0.0, 4.5], [5], repetition_penalty=1.2) == 4  # 5 logits, so there is no token 5


def test_logit_bias_moves_a_token_up_or_out() -> None:
    assert chosen([1.0, 2.0, 3.0], logit_bias={0: 5.0}) == 0
    assert chosen([1.0, 2.0, 3.0], logit_bias={2: -100.0}) == 1


def test_min_tokens_forbids_stopping_until_then() -> None:
    logits = [0.0] * 9 + [8.0, 4.0]  # token 9 stops
    assert chosen(logits, [1], min_tokens=2) == 10
    assert chosen(logits, [1, 1], min_tokens=2) == 9


def test_logprobs_are_the_models_own_whatever_the_rules_do() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    expected = logits[0].log_softmax(-1).tolist()
    sequence = Drawn(0.0, temperature=0, logprobs=2, logit_bias={0: 50.0})
    choice = sample(logits.clone(), [sequence, Drawn(0.5)][:1])[0]
    assert choice.token == 0
    assert choice.logprob is not None
    assert choice.logprob.chosen == pytest.approx(expected[0], abs=1e-6)
    assert choice.logprob.top_ids == [2, 1]
    assert choice.logprob.top == pytest.approx([expected[2], expected[1]], abs=1e-6)


def test_no_alternatives_still_gives_the_chosen_tokens_logprob() -> None:
    choices = sample(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), [Drawn(0, temperature=0, logprobs=0), Drawn(0.1)])
    assert choices[0].logprob is not None
    assert choices[0].logprob.top == []
    assert choices[1].logprob is None


def test_an_extreme_temperature_stays_a_distribution() -> None:
    torch.manual_seed(6)
    logits = torch.randn(1, VOCABULARY) * 20
    best = int(logits.argmax())
    assert sample(logits.clone(), [Drawn(0.999, temperature=0.001)])[0].token == best
    assert sample(logits.clone(), [Drawn(0.999, temperature=1e-9)])[0].token == best
    assert sample(logits.clone(), [Drawn(0.9999999, temperature=2.0, top_p=0.999999)])[0].token < VOCABULARY
