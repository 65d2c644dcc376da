"""Choosing tokens by a seed, so that the same request is answered the same whatever runs beside it.

A walk down the distribution with one number per token would not do: rounding, which depends on the batch, moves the
borders between thousands of unlikely tokens, and a draw at high temperature often falls near one. So every token gets a
number of its own from the sequence's stream, and the best of probability over number wins (Gumbel's trick with
exponential numbers): rounding decides only when two tokens come out equal.
"""

from __future__ import annotations

import torch

from quintet_chat.protocol import Sampling

_SEEDS = (1 << 63) - 1
_FIRST = 1024
"""How many of the best tokens are sorted for ``top_p`` before all are."""


class Stream:
    """The random numbers of one choice of a request."""

    def __init__(self, seed: int, index: int) -> None:
        self._generator = torch.Generator().manual_seed((seed + index) & _SEEDS)

    def choose(self, logits: torch.Tensor, rule: Sampling) -> int:
        """A token by ``logits`` [vocabulary] float32, after penalties and masks; takes one number per token."""
        scores = _cut(logits / rule.temperature, rule)
        numbers = torch.empty(len(scores)).exponential_(generator=self._generator).to(scores.device)
        return int((scores - numbers.log()).argmax())


def _cut(scores: torch.Tensor, rule: Sampling) -> torch.Tensor:
    """Minus infinity for what top_k, then top_p and min_p leave out; equally probable tokens stay or go together."""
    least = scores.new_tensor(float("-inf"))
    if 0 < rule.top_k < len(scores):
        least = scores.topk(rule.top_k).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if rule.top_p < 1:
        least = torch.maximum(least, _least_of_nucleus(scores, rule.top_p))
    if rule.min_p > 0:
        least = torch.maximum(least, scores.max() + torch.tensor(rule.min_p).log().to(scores.device))
    return scores.masked_fill(scores < least, float("-inf"))


def _least_of_nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """The score of the last token of the fewest that together have a share of ``top_p``."""
    total = scores.logsumexp(-1)
    for size in (min(_FIRST, len(scores)), len(scores)):
        best = scores.topk(size).values
        before = (best - total).exp().cumsum(-1) - (best - total).exp()
        inside = int((before < top_p).sum())
        if inside < size:
            break
    return best[max(inside, 1) - 1]
