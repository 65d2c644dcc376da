"""Padded decode steps, replayed without a GPU: the shapes they take, and that padding changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from chat.blocks_kit import BLOCK
from chat.engine_kit import KINDS, STATEFUL, reference
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.padded import PaddedDecode, Record, length_bucket, rows_bucket
from quintet_chat.engine.paging import Paging
from quintet_chat.engine.runner import Piece, Runner


class Recorder:
    """Stands for CUDA graphs: what was recorded is run again as it is, on the tensors it was recorded with."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recorded += 1
        return step


def in_blocks(kind: str, record: Record | None = None) -> Runner:
    """A runner as on a GPU: its slots are made of blocks, its steps are padded if they are recorded."""
    runner = Runner(reference(kind), 8, 512, 4096, Paging(BLOCK))
    if record is not None:
        assert isinstance(runner.slots, BlockCache)
        runner.padded = PaddedDecode(runner.step, runner.slots, runner.device, record)
    return runner


@pytest.mark.parametrize(
    ("rows", "limit", "bucket"), [(1, 8, 1), (3, 8, 4), (5, 6, 6), (17, 64, 24), (97, 256, 128), (130, 512, 192)]
)
def test_buckets_of_rows(rows: int, limit: int, bucket: int) -> None:
    assert rows_bucket(rows, limit) == bucket


@pytest.mark.parametrize(
    ("length", "limit", "bucket"), [(1, 999, 256), (256, 999, 256), (257, 999, 512), (700, 999, 999)]
)
def test_buckets_of_lengths(length: int, limit: int, bucket: int) -> None:
    assert length_bucket(length, limit) == bucket


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STATEFUL])
def test_padded_steps_give_the_logits_of_plain_ones_and_touch_no_other_slot(kind: str) -> None:
    recorder = Recorder()
    plain, padded = in_blocks(kind), in_blocks(kind, recorder)
    prompts = [[3 + (7 * row + i) % 250 for i in range(20 + row)] for row in range(4)]
    lengths = [len(prompt) for prompt in prompts]
    for runner in (plain, padded):
        assert runner.slots.reserve([length + 40 for length in lengths])
        runner.prefill(0, [Piece(0, prompt) for prompt in prompts])
    for step in range(6):
        tokens, positions = [5, 6, 7], [length + step for length in lengths[:3]]
        expected = plain.decode(tokens, positions)
        assert torch.allclose(padded.decode(tokens, positions), expected, atol=1e-4)
    assert recorder.recorded == 1
    for mine, theirs in zip(padded.slots.layers, plain.slots.layers, strict=True):
        # The fourth slot holds a prompt that is only half computed, as it were.
        for left, right in zip(mine.read(3, 0, lengths[3]), theirs.read(3, 0, lengths[3]), strict=True):
            assert torch.equal(left, right)


def test_shapes_are_recorded_anew_when_the_pools_have_grown_and_only_then() -> None:
    recorder = Recorder()
    runner = in_blocks("llama", recorder)
    runner.slots.reserve([30])
    runner.prefill(0, [Piece(0, [5] * 20)])
    runner.decode([5], [20])
    runner.slots.reserve([100, 30])
    runner.decode([5], [21])
    assert recorder.recorded == 1
    runner.slots.reserve([400, 400])
    runner.decode([5], [22])
    assert recorder.recorded == 2


def test_a_model_that_cannot_be_recorded_runs_as_it_is() -> None:
    def refuse(_step: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    runner = in_blocks("llama", refuse)
    runner.slots.reserve([30])
    runner.prefill(0, [Piece(0, [5] * 20)])
    assert runner.decode([5], [20]).shape == (1, reference("llama").config.vocab_size)
