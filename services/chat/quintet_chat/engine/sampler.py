"""Choosing the next token of every sequence of a batch, each by its own rules.

Order, as in transformers: penalties, bias, grammar; temperature, top_k, top_p, min_p. The distribution is walked from
its most probable token down with one random number per token. Only the best candidates are ever sorted; a row that
needs more is finished exactly, by itself. Rows with a seed are chosen one by one (seeded.py).
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from quintet_chat.engine.masks import mask
from quintet_chat.engine.request import Sequence

CANDIDATES = (64, 2048, sys.maxsize)
"""How many of the best tokens of a row are looked at: first few, then more for the rows that these do not decide."""

GREEDY_BELOW = 1e-4
"""A temperature under this is greedy: dividing by it would overflow."""


class Logprob(NamedTuple):
    """The model's own log probabilities, before any rule: of the chosen token and of the best ones."""

    chosen: float
    top_ids: list[int]
    top: list[float]


class Choice(NamedTuple):
    token: int
    logprob: Logprob | None


@torch.inference_mode()
def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[Choice]:
    """One token per row of ``logits`` [rows, vocabulary] float32, which is overwritten.

    Grammars have accepted the tokens when this returns.
    """
    raw = _RawLogprobs(logits, sequences)
    for row, sequence in enumerate(sequences):
        _apply_rules(logits[row], sequence)
    mask(logits, sequences)
    tokens = _choose(logits, sequences)
    for sequence, token in zip(sequences, tokens, strict=True):
        if sequence.matcher is not None:
            sequence.matcher.accept(token)
    logprobs = raw.of(tokens)
    return [Choice(token, logprobs.get(row)) for row, token in enumerate(tokens)]


class _RawLogprobs:
    """Log probabilities of the rows that asked for them, taken before the rules change the logits."""

    def __init__(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        counts = {row: count for row, s in enumerate(sequences) if (count := s.request.sampling.logprobs) is not None}
        self._counts = counts
        if not counts:
            return
        self._logprobs = logits[list(counts)].log_softmax(-1)
        self._top = self._logprobs.topk(min(max(*counts.values(), 1), logits.shape[1]), dim=-1)

    def of(self, tokens: list[int]) -> dict[int, Logprob]:
        """By row, of those that asked, for the tokens that were chosen. On a GPU this waits for the device once."""
        if not self._counts:
            return {}
        ids = torch.tensor([[tokens[row]] for row in self._counts]).to(self._logprobs.device)
        chosen = self._logprobs.gather(1, ids)
        # Whole numbers of any vocabulary are the same in double precision.
        found = torch.cat([each.double() for each in (chosen, *self._top)], dim=1).tolist()
        size = self._top.values.shape[1]
        return {
            row: Logprob(value, [int(each) for each in rest[size : size + count]], rest[: min(count, size)])
            for (row, count), (value, *rest) in zip(self._counts.items(), found, strict=True)
        }


def _apply_rules(row: torch.Tensor, sequence: Sequence) -> None:
    """Penalties, bias and the ban on stopping before ``min_tokens``, in place.

    Presence and frequency count the answer, as OpenAI documents; repetition counts prompt and answer, as transformers.
    """
    sampling = sequence.request.sampling
    if sampling.repetition_penalty != 1.0:
        # Tokens of pictures may be beyond the vocabulary.
        seen = [token for token in {*sequence.request.prompt, *sequence.tokens} if token < len(row)]
        scores = row[seen]
        row[seen] = torch.where(scores > 0, scores / sampling.repetition_penalty, scores * sampling.repetition_penalty)
    if sequence.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = torch.tensor(list(sequence.counts), device=row.device)
        counts = torch.tensor(list(sequence.counts.values()), dtype=row.dtype, device=row.device)
        row[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(sampling.logit_bias.values()), dtype=row.dtype, device=row.device)
    # A finished grammar allows nothing but stopping, so it decides alone.
    if len(sequence.tokens) < sampling.min_tokens and sequence.matcher is None:
        row[list(sequence.request.stop_ids)] = float("-inf")


def _choose(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """On a GPU each way of choosing that has rows waits for the device once, and each seed."""
    random_rows = [row for row, s in enumerate(sequences) if s.request.sampling.temperature >= GREEDY_BELOW]
    greedy = len(random_rows) < len(sequences)
    tokens: list[int] = logits.argmax(-1).tolist() if greedy else [0] * len(sequences)
    for row in random_rows:
        if (stream := sequences[row].stream) is not None:
            tokens[row] = stream.choose(logits[row], sequences[row].request.sampling)
    random_rows = [row for row in random_rows if sequences[row].stream is None]
    if random_rows:
        drawn = [sequences[row] for row in random_rows]
        rows = logits if len(random_rows) == len(sequences) else logits[random_rows]
        for row, token in zip(random_rows, _draw(rows, drawn), strict=True):
            tokens[row] = token
    return tokens


def _draw(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    vocabulary = logits.shape[1]
    numbers = [
        (s.draw(), rule.temperature, min(rule.top_k or vocabulary, vocabulary), rule.top_p, rule.min_p)
        for s in sequences
        for rule in [s.request.sampling]
    ]
    draws, temperatures, *rules = logits.new_tensor(numbers)[:, :, None].unbind(1)
    scaled, cuts = logits.div_(temperatures), _Cuts(*rules)
    tokens = [0] * len(sequences)
    rows = list(range(len(sequences)))
    for size in CANDIDATES:
        chosen, settled = _walk(scaled, draws, cuts, min(size, vocabulary))
        open_rows = []
        for place, (row, token, done) in enumerate(zip(rows, *torch.stack([chosen, settled]).tolist(), strict=True)):
            tokens[row] = token
            if not done:
                open_rows.append(place)
        if not open_rows:
            break
        rows = [rows[place] for place in open_rows]
        scaled, draws, cuts = scaled[open_rows], draws[open_rows], _Cuts(*(cut[open_rows] for cut in cuts))
    return tokens


class _Cuts(NamedTuple):
    """The rules that cut a distribution, each [rows, 1]. A ``top_k`` of the whole vocabulary cuts nothing."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


def _walk(scaled: torch.Tensor, draws: torch.Tensor, cuts: _Cuts, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the ``size`` best tokens of each row of ``scaled`` [rows, vocabulary], logits over temperature.

    Returns the tokens [rows], and whether each is certain [rows]: the walk over all tokens would choose the same.
    """
    best = scaled.topk(size, dim=-1)
    probabilities = (best.values - scaled.logsumexp(-1, keepdim=True)).exp()
    kept = probabilities * (torch.arange(size, device=scaled.device) < cuts.top_k)
    covered = cuts.top_k <= size
    # top_p is a share of what top_k has left.
    total = torch.where(covered, kept.sum(-1, keepdim=True), 1.0)
    nucleus = (kept.cumsum(-1) - kept < cuts.top_p * total) | (cuts.top_p >= 1)
    likely = probabilities >= cuts.min_p * probabilities[:, :1]
    uncut = cuts.top_k >= scaled.shape[1]
    whole = covered | (uncut & ~(nucleus & likely)[:, -1:])
    unruled = uncut & (cuts.top_p >= 1) & (cuts.min_p <= 0)
    kept = kept * (nucleus & likely)
    cumulative = kept.cumsum(-1)
    target = draws * torch.where(unruled, 1.0, cumulative[:, -1:])
    places = (cumulative <= target).sum(-1, keepdim=True)
    # Rounding may carry the draw past the last token that was kept.
    last = (kept > 0).sum(-1, keepdim=True) - 1
    tokens = best.indices.gather(1, torch.minimum(places, last).clamp(min=0))
    return tokens[:, 0], (whole | (unruled & (places < size)))[:, 0]
