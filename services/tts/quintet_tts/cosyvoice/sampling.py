"""Which token comes next: a draw from the likeliest few, drawn again from all when it would repeat a recent one.

This is the repetition aware sampling of VALL-E 2 (arXiv:2406.05370), with CosyVoice's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    top_p: float = 0.8
    top_k: int = 25
    window: int = 10
    """Of the last tokens, in which repetitions count."""
    repetition: float = 0.1
    """The share of the window that a token may have before it is drawn again."""


def nucleus(log_probabilities: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """The likeliest tokens up to the one with which their sum reaches ``top_p``: probabilities and ids."""
    probabilities = log_probabilities.softmax(dim=0)
    best, ids = probabilities.topk(min(config.top_k, probabilities.shape[0]))
    before = best.cumsum(0) - best
    count = int((before < config.top_p).sum())
    return best[:count], ids[:count]


def draw(log_probabilities: Tensor, said: Sequence[int], config: SamplingConfig, generator: torch.Generator) -> int:
    """The next token after ``said``; ``log_probabilities`` [V] are float32 on the generator's device.

    Chance comes from ``generator`` alone: one draw, and a second one for a repetition.
    """
    best, ids = nucleus(log_probabilities, config)
    token = int(ids[_choose(best, generator)])
    if said[-config.window :].count(token) >= config.window * config.repetition:
        others = log_probabilities.clone()
        others[token] = -torch.inf
        token = _choose(others.softmax(dim=0), generator)
    return token


def _choose(weights: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights, 1, replacement=True, generator=generator))
