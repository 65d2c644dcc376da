"""What grammars forbid, set to minus infinity in the logits.

Filling takes 0.1 ms of a step with 8 sequences and 0.3 with 32 (``bench/chat/grammars.py``), too little to be worth a
pool of threads. On a GPU the device still computes the logits meanwhile: nothing between the two waits for it, unless
log probabilities or penalties are asked for.
"""

from __future__ import annotations

import numpy as np
import torch
import xgrammar

from quintet_chat.engine.request import Sequence


def mask(logits: torch.Tensor, sequences: list[Sequence]) -> None:
    """Set what the grammars of the sequences forbid to minus infinity, in place; rows without a grammar stay."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.matcher is not None]
    if not rows:
        return
    bitmask = xgrammar.allocate_token_bitmask(len(sequences), logits.shape[1])
    for row in rows:
        sequences[row].matcher.fill(bitmask, row)
    apply(logits, bitmask, rows)


def apply(logits: torch.Tensor, bitmask: torch.Tensor, rows: list[int]) -> None:
    """Where a bit of ``bitmask`` [rows, vocabulary / 32] is not set, in the ``rows`` given."""
    if logits.device.type != "cpu":
        # xgrammar's kernel for GPUs is compiled at the first use, which takes a C compiler.
        _forbid(logits, rows, _unset_on_device(bitmask[rows].to(logits.device), logits.shape[1]))
        return
    # xgrammar's way goes from one forbidden token to the next: about five times slower where nearly all are.
    allowed = np.bitwise_count(bitmask[rows].numpy().view(np.uint32)).sum(1)
    few = [row for row, count in zip(rows, allowed, strict=True) if 2 * count < logits.shape[1]]
    if few:
        bits = np.unpackbits(bitmask[few].numpy().view(np.uint8), axis=1, bitorder="little")
        _forbid(logits, few, torch.from_numpy(bits[:, : logits.shape[1]] == 0))
        rows = [row for row in rows if row not in few]
    if rows:
        # xgrammar forbids what the last word's other bits say, too: the next row's first logits, or memory behind all.
        if used := logits.shape[1] % 32:
            bitmask[:, -1] |= -(1 << used)
        xgrammar.apply_token_bitmask_inplace(logits, bitmask, indices=rows)


def _forbid(logits: torch.Tensor, rows: list[int], forbidden: torch.Tensor) -> None:
    """In the ``rows`` of ``logits``, where ``forbidden`` [len(rows), vocabulary]."""
    if len(rows) == len(logits):
        logits.masked_fill_(forbidden, float("-inf"))
    else:
        logits[rows] = logits[rows].masked_fill_(forbidden, float("-inf"))


def _unset_on_device(words: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Which of the first ``vocabulary`` bits of each row of ``words`` [rows, vocabulary / 32] int32 are not set."""
    bits = words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=words.device)
    return ((bits & 1) == 0).flatten(1)[:, :vocabulary]
