"""Slots made of blocks, on a CPU: as on a GPU but for the recording of steps and for who computes attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from chat.engine_kit import DEVICE
from quintet_chat.backends import loader
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.padded import Graphs, Record
from quintet_chat.engine.paging import Paging
from quintet_chat.engine.runner import Runner
from quintet_chat.engine.slots import SlotCache

BLOCK = 16

CACHES: dict[str, Callable[..., SlotCache]] = {"pages": SlotCache, "blocks": partial(BlockCache, block=BLOCK)}


def replayed(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Stands for CUDA graphs: what was recorded is run again as it is, on the tensors it was recorded with."""
    return step


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """What ``torch.nn.attention.varlen.varlen_attn`` is documented to compute, one sequence after the other."""
    assert return_aux is None
    assert num_splits == 1
    out = torch.full_like(query, torch.nan)
    for row, (begin, end) in enumerate(zip(cu_seq_q.tolist()[:-1], cu_seq_q.tolist()[1:], strict=True)):
        if block_table is not None:
            assert block_table.dtype == torch.int32
            assert seqused_k is not None
            assert seqused_k.dtype == torch.int32
            blocks = block_table[row].long()
            keys, values = (pool[blocks].flatten(0, 1)[: seqused_k[row]] for pool in (key, value))
        else:
            assert cu_seq_k is not None
            keys, values = (each[cu_seq_k[row] : cu_seq_k[row + 1]] for each in (key, value))
        queries = query[begin:end]
        assert 0 < len(queries) <= max_q
        assert 0 < len(keys) <= max_k
        groups = queries.shape[1] // keys.shape[1]
        assert enable_gqa or groups == 1
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * (scale or queries.shape[-1] ** -0.5)
        # The last query is at the last key.
        behind = torch.arange(len(queries))[:, None] + len(keys) - len(queries) - torch.arange(len(keys))
        hidden = torch.zeros_like(behind, dtype=torch.bool)
        if window_size[0] >= 0:
            hidden |= behind > window_size[0]
        if window_size[1] >= 0:
            hidden |= -behind > window_size[1]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, values)
    return out


RECORD: Record = replayed if DEVICE == "cpu" else Graphs(torch.device(DEVICE))
GATHERED = Paging(BLOCK, RECORD, None)
FLASHED = Paging(BLOCK, RECORD, varlen_attn)
PAGINGS = {
    "pages": None if DEVICE == "cpu" else GATHERED,  # which a GPU does not have
    "blocks, gathered": GATHERED,
    "blocks, read by the table": FLASHED,
}


def with_paging(monkeypatch: pytest.MonkeyPatch, paging: Paging | None) -> None:
    """Let models be loaded with such slots."""
    monkeypatch.setattr(loader, "Runner", partial(Runner, paging=paging))
