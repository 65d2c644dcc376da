"""Slots made of blocks: who has which, what is shared, and how attention over them is chosen."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from chat.blocks_kit import BLOCK, FLASHED, replayed, varlen_attn, with_paging
from chat.engine_kit import reference, started, submit, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet_chat.engine import blocks, flash, scheduler, trial
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.paging import Paging
from quintet_chat.engine.runner import Piece, Runner
from quintet_chat.engine.slots import KeyValueLayer

ROWS, LONGEST, CELLS = 4, 40, 64


class Story:
    """A cache of small blocks and what its slots must hold: numbers that are written one after the other."""

    def __init__(self) -> None:
        self.slots = BlockCache(1, ROWS, LONGEST, CELLS, block=4)
        self.texts: list[list[int]] = []
        self._number = 0

    def reserve(self, lengths: list[int]) -> bool:
        done = self.slots.reserve(lengths)
        self.agree()
        return done

    def add(self, length: int) -> None:
        """A new sequence, behind the others."""
        if self.reserve([*map(len, self.texts), length]):
            self.texts.append([])
            self._write(len(self.texts) - 1, length)

    def extend(self, row: int, count: int) -> None:
        lengths = [*map(len, self.texts)]
        lengths[row] += count
        if self.reserve(lengths):
            self._write(row, count)

    def fork(self, row: int) -> None:
        length = len(self.texts[row])
        if self.reserve([*map(len, self.texts), length - self.slots.shared(length)]):
            self.slots.copy(row, len(self.texts), length)
            self.texts.append(list(self.texts[row]))

    def end(self, row: int) -> None:
        last = len(self.texts) - 1
        self.slots.free(row)
        if row != last:
            self.slots.move(last, row, len(self.texts[last]))
            self.slots.free(last)
        self.texts[row] = self.texts[last]
        self.texts.pop()

    def agree(self) -> None:
        layer = self.slots.layers[0]
        assert isinstance(layer, KeyValueLayer)
        for row, text in enumerate(self.texts):
            for part, sign in zip(layer.read(row, 0, len(text)), (1, -1), strict=True):
                assert part[:, 0, 0].tolist() == [sign * number for number in text]

    def _write(self, row: int, count: int) -> None:
        start = len(self.texts[row])
        new = list(range(self._number, self._number + count))
        self._number += count
        self.texts[row] += new
        self.slots.plan = self.slots.prefill(row, [start], [count], fresh=False)
        keys = torch.tensor(new, dtype=torch.float32)[None, None, :, None].expand(1, 2, count, 3)
        self.slots.layers[0].update(keys, -keys)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("aefd"), st.integers(0, 9), st.integers(1, 14)), max_size=30))
def test_slots_hold_what_was_written_and_all_blocks_come_back(doings: list[tuple[str, int, int]]) -> None:
    story = Story()
    for kind, which, count in doings:
        row = which % max(len(story.texts), 1)
        if kind == "a":
            story.add(count)
        elif story.texts:
            {"e": lambda: story.extend(row, count), "f": lambda: story.fork(row), "d": lambda: story.end(row)}[kind]()  # noqa: B023
        story.agree() if story.texts else None
        assert story.slots.table.used <= CELLS // 4
    while story.texts:
        story.end(0)
        story.agree() if story.texts else None
    assert (story.slots.table.used, story.slots.held, story.slots.usage(0)) == (0, 0, 0.0)


def test_a_fork_takes_memory_for_its_last_block_alone() -> None:
    story = Story()
    story.add(30)
    story.fork(0)
    assert story.slots.table.used == 8 + 1
    story.extend(1, 5)
    assert story.slots.table.used == 8 + 2
    story.end(0)
    assert story.slots.table.used == 9


def test_a_fork_needs_no_more_memory_than_it_takes() -> None:
    story = Story()
    story.add(38)
    for _ in range(3):
        story.fork(0)
    assert len(story.texts) == 4
    assert story.slots.table.used == 10 + 3
    story.extend(0, 2)
    story.agree()


def test_memory_is_that_of_the_sum_of_the_lengths_and_pools_grow_by_doubling() -> None:
    slots = BlockCache(1, 32, 8192, 8192, block=BLOCK)
    assert slots.reserve([1])
    slots.plan = slots.prefill(0, [0], [1], fresh=False)
    slots.layers[0].update(torch.ones(1, 1, 1, 8), torch.ones(1, 1, 1, 8))
    sizes = set()
    for long in range(100, 5000, 100):
        assert slots.reserve([long, *[60] * 31])
        assert slots.held == -(-long // BLOCK) * BLOCK + 31 * 64
        sizes.add(len(slots.layers[0].stores[0]))
    assert slots.generation == len(sizes) + 1
    assert len(sizes) < 6
    slots.rest()
    assert slots.held == 0
    assert len(slots.layers[0].stores[0]) == max(sizes), "the pools stay, with what was recorded"
    slots.release()
    assert slots.layers[0].stores == []


def test_half_computed_prompts_make_way_and_newcomers_have_the_memory_that_they_asked_for() -> None:
    slots = BlockCache(1, 4, 200, 1024, block=BLOCK)
    assert slots.reserve([100])
    assert slots.reserve([150, 10, 100])
    slots.move(0, 2, 90)
    slots.table.check(0, 0, 150)
    slots.table.check(2, 90, 100)


def test_what_two_slots_have_is_not_written() -> None:
    slots = BlockCache(1, 4, 200, 1024, block=BLOCK)
    slots.reserve([40, 40 - slots.shared(40)])
    slots.copy(0, 1, 40)
    slots.table.check(1, 32, 40)
    with pytest.raises(RuntimeError, match="slot 1 has no blocks of its own for tokens 31 to 39"):
        slots.prefill(1, [31], [9], fresh=False)
    with pytest.raises(RuntimeError, match="slot 0 has no blocks of its own"):
        slots.decode([48])


def test_pools_that_the_device_has_no_memory_for_are_not_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    story.add(10)
    allocate, sizes = story.slots.layers[0].allocate, []

    def allocate_some() -> None:
        sizes.append(story.slots.table.size)
        if story.slots.table.size > 17:
            raise torch.OutOfMemoryError("CUDA out of memory")
        allocate()

    monkeypatch.setattr(story.slots.layers[0], "allocate", allocate_some)
    story.slots.cells = 4000
    story.slots.longest = 100
    assert not story.slots.reserve([10, 60])
    story.agree()
    assert sizes == [35, 19]
    assert story.slots.cells == 64
    assert story.reserve([10, 40])
    story.agree()


def runner_of(kind: str, paging: Paging) -> Runner:
    model: Any = copy.deepcopy(reference(kind))
    return Runner(model, 4, 512, 2048, paging)


def settled(kind: str, paging: Paging) -> Runner:
    runner = runner_of(kind, paging)
    runner.check()
    trial.settle(runner)
    runner.check()
    return runner


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "glm4", "qwen2_moe", "lfm2"])
def test_attention_over_blocks_says_what_gathering_says(kind: str) -> None:
    plain, flashed = runner_of(kind, Paging(BLOCK)), settled(kind, FLASHED)
    assert (plain.reading, flashed.reading) == ("sdpa", "flash over blocks")
    lengths = [37, 16, 3, 70]
    prompts = [[3 + (7 * row + i) % 250 for i in range(length)] for row, length in enumerate(lengths)]
    said = []
    for runner in (plain, flashed):
        assert runner.slots.reserve([length + 20 for length in lengths])
        logits = [runner.prefill(0, [Piece(0, prompt[:-2]) for prompt in prompts])]
        logits += [runner.prefill(0, [Piece(len(prompt) - 2, prompt[-2:]) for prompt in prompts])]
        logits += [runner.decode([5, 6, 7], [length + step for length in lengths[:3]]).clone() for step in range(17)]
        said.append(torch.cat(logits))
    assert torch.allclose(*said, atol=2e-4)


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_what_is_too_much_to_be_gathered_at_once_is_read_apart(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [30, 200, 9, 60]
    prompts = [[3 + (7 * row + i) % 250 for i in range(length)] for row, length in enumerate(lengths)]
    said = []
    for most in (1 << 15, 400):
        monkeypatch.setattr(blocks, "LEAST_GATHERED", most)
        runner = runner_of(kind, Paging(BLOCK))
        runner.slots.cells = 400
        assert runner.slots.reserve([length + 9 for length in lengths])
        passes = []
        hook = runner._model.register_forward_hook(lambda *_: passes.append(1))  # noqa: B023
        logits = [runner.prefill(0, [Piece(0, prompt[:-3]) for prompt in prompts])]
        logits += [runner.prefill(0, [Piece(len(prompt) - 3, prompt[-3:]) for prompt in prompts])]
        logits += [runner.decode([5, 6, 7, 8], [length + step for length in lengths]) for step in range(3)]
        hook.remove()
        said.append(torch.cat(logits))
        apart = [4, 4, 12 if most == 400 else 3] if kind == "lfm2" else [1, 4, 6] if most == 400 else [1, 1, 3]
        assert len(passes) == sum(apart)
    assert torch.allclose(*said, atol=2e-4)


def wrong_window(*args: Any, window_size: tuple[int, int], **more: Any) -> torch.Tensor:
    return varlen_attn(*args, window_size=(-1, window_size[1]), **more)


def wrong_lengths(*args: Any, seqused_k: torch.Tensor | None, **more: Any) -> torch.Tensor:
    return varlen_attn(*args, seqused_k=seqused_k if seqused_k is None else (seqused_k - 1).clamp(min=1), **more)


def only_the_first(query: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
    """As FlashAttention 2 does when it splits keys of several rows."""
    found = varlen_attn(query, *args, **more)
    if more["block_table"] is not None and len(query) == len(more["block_table"]):
        found[1:] = torch.nan
    return found


def not_there(*_: Any, **__: Any) -> torch.Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (wrong_window, "it says something else"),
        (wrong_lengths, "it says something else"),
        (only_the_first, "it says something else"),
        (not_there, "FlashAttention only supports Ampere GPUs or newer"),
    ],
)
def test_a_kernel_that_computes_something_else_is_not_used(
    kernel: Callable[..., Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="quintet.chat"):
        runner = settled("mistral", Paging(BLOCK, replayed, kernel))
    assert caplog.messages == [f"attention does not read blocks by FlashAttention: {reason}."]
    assert runner.reading == "sdpa"
    assert runner.padded is not None


def test_steps_that_are_replayed_wrongly_or_cannot_be_recorded_are_not(caplog: pytest.LogCaptureFixture) -> None:
    def frozen(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        logits = step()
        return lambda: logits

    def refuse(_step: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    for record, reason in ((frozen, "it says something else"), (refuse, "a step cannot be recorded")):
        caplog.clear()
        runner = settled("llama", Paging(BLOCK, record, varlen_attn))
        assert caplog.messages[-1] == f"decode steps are not recorded: {reason}."
        assert runner.padded is None
        assert runner.reading == "flash over blocks"


@pytest.mark.parametrize("kind", ["gemma2", "llama4_text"])
def test_models_whose_attention_is_another_gather(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    assert settled(kind, FLASHED).reading != "flash over blocks"
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "more",
    [{"softcap": 30.0}, {"s_aux": torch.ones(4)}, {"dropout": 0.1}, {"is_causal": False}, {"sliding_window": 9}]
)  # fmt: skip
def test_attention_over_blocks_refuses_what_it_was_not_told(more: dict[str, Any]) -> None:
    runner = settled("mistral", FLASHED)
    runner.slots.reserve([5])
    flash.running.plan = runner.slots.prefill(0, [0], [5], fresh=True)  # type: ignore[assignment]
    module: Any = runner._model.model.layers[0].self_attn
    query = torch.ones(1, 4, 5, 16)
    flash.running.plan.put(torch.zeros(8, BLOCK, 4, 16), query)  # type: ignore[union-attr]
    assert flash.attention(module, query, query, query, None, sliding_window=8)[0].shape == (1, 5, 4, 16)
    with pytest.raises(ValueError, match=r"attention over blocks|a window of 9"):
        flash.attention(module, query, query, query, None, **more)
    with pytest.raises(ValueError, match="a mask"):
        flash.attention(module, query, query, query, torch.ones(1, 1, 5, 5))


def test_choices_share_blocks_and_say_what_they_say_on_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for paging in (None, FLASHED):
        with_paging(monkeypatch, paging)
        engine = started(tiny_spec(max_batch=4, engine_args={"prefill_chunk": 16, "prefix_cache": "off"}))
        prompt = [3 + 7 * number % 250 for number in range(40)]
        heard = submit(engine, prompt, n=3, temperature=1, seed=5, max_tokens=30, ignore_eos=True)[1].wait()
        said.append([heard.text(index) for index in range(3)])
    assert said[0] == said[1]
    assert len(set(said[0])) == 3


def test_an_engine_that_had_nothing_to_do_goes_on_with_its_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "IDLE_SECONDS", 0.05)
    with_paging(monkeypatch, FLASHED)
    engine = started(tiny_spec(max_batch=2))
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    said = [submit(engine, [5] * 40, **asked)[1].wait().text()]
    slots = engine._scheduler._runner.slots
    generation = slots.generation
    time.sleep(0.3)
    said.append(submit(engine, [5] * 40, **asked)[1].wait().text())
    assert said[0] == said[1]
    assert slots.generation == generation
