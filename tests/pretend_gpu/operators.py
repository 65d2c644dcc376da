"""Operators that a GPU has and a CPU has not, in plain operations that do not wait for the device.

What FlashAttention demands of its input is what torch's source for it checks
(aten/src/ATen/native/transformers/cuda/flash_attn).
"""

from __future__ import annotations

import torch

_library = torch.library.Library("aten", "IMPL")
BLOCKS_OF = 256
MOST_HEAD_SIZE = 256


def register() -> None:
    """Let tensors of the device type "cuda" have them."""
    _library.impl("_flash_attention_forward", attend, "CUDA")
    _library.impl("histc", histc, "CUDA")
    _library.impl("_grouped_mm", grouped_mm, "CUDA")


def histc(values: torch.Tensor, bins: int = 100, least: float = 0, most: float = 0) -> torch.Tensor:
    """The CPU counts no integers."""
    places = ((values.float() - least) * bins / (most - least)).floor().clamp(max=bins - 1)
    counted = (places[:, None] == torch.arange(bins, device=values.device)) & (values <= most)[:, None]
    return counted.sum(0).to(values.dtype)


def grouped_mm(
    left: torch.Tensor,
    right: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Rows of ``left`` [rows, in] by the matrix of their group, [groups, in, out]; groups end at ``offs``."""
    assert left.dim() == 2
    assert right.dim() == 3
    assert bias is None
    # A GPU has a kernel for this type; for others torch asks for the ends first.
    ends = offs if left.dtype == torch.bfloat16 else offs.tolist()
    rows = torch.arange(len(left), device=left.device)[:, None]
    out, begin = left.new_zeros(len(left), right.shape[2]), torch.zeros_like(offs[0])
    for number in range(len(right)):
        here = (rows >= begin) & (rows < ends[number])
        out, begin = torch.where(here, left @ right[number], out), ends[number]
    return out.to(out_dtype or left.dtype)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor | None,
    cum_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """``query`` [tokens, heads, size]; keys and values like it, or [blocks, tokens, heads, size] with a table."""
    assert cum_seq_q is not None
    assert cum_seq_k is not None
    assert (dropout_p, return_debug_mask, alibi_slopes) == (0, False, None)
    assert num_splits == 1, "more are wrong for several rows (pytorch#194167)"
    assert min(max_q, max_k) > 0
    _check(query, key, value, cum_seq_q, cum_seq_k, seqused_k, block_table)
    rows = len(cum_seq_q) - 1
    left = -1 if window_size_left is None else window_size_left
    right = 0 if is_causal else -1 if window_size_right is None else window_size_right
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    places = torch.arange(len(query), device=query.device)
    row_of = torch.searchsorted(cum_seq_q[1:].contiguous(), places, right=True)
    lengths = seqused_k if seqused_k is not None else cum_seq_k[1:] - cum_seq_k[:-1]
    last = cum_seq_q[row_of + 1] - 1
    at = lengths[row_of] - 1 - (last - places)  # the last query is at the last key
    out = torch.zeros_like(query)
    for row in range(rows):
        if block_table is None:
            keys, values = key, value
            number = torch.arange(len(key), device=key.device) - cum_seq_k[row]
        else:
            keys, values = key[block_table[row].long()].flatten(0, 1), value[block_table[row].long()].flatten(0, 1)
            number = torch.arange(len(keys), device=key.device)
        seen = (number >= 0) & (number < lengths[row]) & (row_of == row)[:, None]
        if left >= 0:
            seen = seen & (number >= at[:, None] - left)
        if right >= 0:
            seen = seen & (number <= at[:, None] + right)
        groups = query.shape[1] // keys.shape[1]
        scores = torch.einsum("qhd,khd->qhk", query.float(), keys.float().repeat_interleave(groups, 1)) * scale
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        found = torch.einsum("qhk,khd->qhd", weights.nan_to_num(), values.float().repeat_interleave(groups, 1))
        out = torch.where((row_of == row)[:, None, None], found.to(out.dtype), out)
    nothing = torch.empty(0, device=query.device)
    return out, torch.zeros(query.shape[1], len(query), device=query.device), nothing, nothing, nothing


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    seqused_k: torch.Tensor | None,
    block_table: torch.Tensor | None,
) -> None:
    def demand(met: bool, what: str) -> None:
        if not met:
            raise RuntimeError(what)

    tensors = (query, key, value)
    demand(query.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type")
    demand(all(each.dtype == query.dtype for each in tensors), "query and key must have the same dtype")
    demand(all(each.is_cuda for each in tensors), "Input tensors must be on CUDA device")
    demand(all(each.stride(-1) == 1 for each in tensors), "Input tensor must have contiguous last dimension")
    size = query.shape[-1]
    demand(size % 8 == 0, "head_size should be a multiple of 8")
    demand(size <= MOST_HEAD_SIZE, "FlashAttention forward only supports head dimension at most 256")
    demand(cum_seq_q.dtype == cum_seq_k.dtype == torch.int32, "cu_seqlens must have dtype int32")
    demand(cum_seq_q.is_contiguous() and cum_seq_k.is_contiguous(), "cu_seqlens must be contiguous")
    demand(len(cum_seq_q) == len(cum_seq_k), "cu_seqlens must have shape (batch_size + 1)")
    demand(query.shape[1] % key.shape[-2] == 0, "heads of keys must divide the heads of queries")
    if block_table is not None:
        demand(block_table.dtype == torch.int32, "block_table must have dtype torch.int32")
        demand(block_table.stride(-1) == 1, "block_table must have contiguous last dimension")
        demand(len(block_table) == len(cum_seq_q) - 1, "block_table must have a row for each sequence")
        demand(key.dim() == 4, "keys and values of a table must be in blocks")
        demand(key.shape[1] % BLOCKS_OF == 0, "Paged KV cache block size must be divisible by 256")
    if seqused_k is not None:
        demand(seqused_k.dtype == torch.int32, "seqused_k must have dtype int32")
        demand(seqused_k.is_cuda and seqused_k.is_contiguous(), "seqused_k must be on CUDA, contiguous")
        demand(len(seqused_k) == len(cum_seq_q) - 1, "seqused_k must have shape (batch_size)")
