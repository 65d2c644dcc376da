"""The scheduler step by step: what one step does, who gets a slot, and what happens when the cache is full."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest
from chat.blocks_kit import BLOCK, PAGINGS, with_paging
from chat.engine_kit import Heard, tiny_spec
from quintet_chat.backends import loader
from quintet_chat.backends.loader import LoadedModel
from quintet_chat.engine import scheduler
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.output import Output
from quintet_chat.engine.prefix import Room
from quintet_chat.engine.prepare import Preparer
from quintet_chat.engine.request import Request
from quintet_chat.engine.scheduler import Scheduler, sequences_of
from quintet_chat.protocol import Generate, Sampling

CHUNK = 16
GATHERED = "blocks, gathered"


class Bench:
    """A scheduler whose steps the test takes itself."""

    def __init__(self, max_batch: int = 4, cells: int | None = None, prefixes: int = 0) -> None:
        self.model: LoadedModel = loader.load(tiny_spec(), max_batch, lambda _fraction, _note: None)
        if cells is not None:
            self.model.runner.slots.cells = cells
        self.output = Output(self.model.tokenizer, lambda _request: None)
        threading.Thread(target=self.output.run, daemon=True).start()
        self.scheduler = Scheduler(self.model.runner, self.output, max_batch, CHUNK, Room(prefixes))
        self._ids = itertools.count()

    def add(self, length: int, max_tokens: int = 8, n: int = 1, **sampling: Any) -> tuple[Request, Heard]:
        """A prompt of ``length`` tokens."""
        return self.add_prompt([3 + (7 * length + i) % 250 for i in range(length)], max_tokens, n, **sampling)

    def add_prompt(self, prompt: list[int], max_tokens: int = 8, n: int = 1, **sampling: Any) -> tuple[Request, Heard]:
        rule = Sampling(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": max_tokens, **sampling})
        heard = Heard()
        request = Request(
            next(self._ids),
            Generate(prompt=prompt, sampling=rule, n=n),
            heard,
            arrived=time.monotonic(),  # type: ignore[arg-type]
        )
        model = self.model
        Preparer(model.tokenizer, model.context, model.vocabulary, model.eos).prepare(request)
        request.sequences = sequences_of(request)
        request.open_choices = n
        self.scheduler.add(request)
        return request, heard

    def finish(self) -> None:
        for _ in range(2000):
            if not self.scheduler.step():
                return
        pytest.fail("the scheduler did not come to an end")

    def tokens(self, length: int, **fields: Any) -> list[int]:
        """What a prompt of ``length`` is answered with when nothing else runs."""
        request, _ = self.add(length, **fields)
        self.finish()
        return request.sequences[0].tokens


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def test_one_step_prefills_and_gives_everyone_a_token(bench: Bench) -> None:
    requests = [bench.add(5)[0], bench.add(3)[0]]
    bench.scheduler.step()
    assert [len(request.sequences[0].tokens) for request in requests] == [2, 2]
    bench.finish()


def test_a_cancelled_request_has_no_slot_after_the_next_step(bench: Bench) -> None:
    cancelled, heard = bench.add(5, max_tokens=100)
    other, _ = bench.add(6, max_tokens=10)
    bench.scheduler.step()
    tokens = len(cancelled.sequences[0].tokens)
    cancelled.cancelled = True
    bench.scheduler.step()
    assert len(cancelled.sequences[0].tokens) == tokens
    assert bench.scheduler.active == other.sequences
    assert heard.wait().reasons == {}
    bench.finish()
    assert other.sequences[0].tokens == bench.tokens(6, max_tokens=10)


def test_a_long_prompt_neither_stops_those_that_run_nor_those_that_come(bench: Bench) -> None:
    running, _ = bench.add(4, max_tokens=30)
    bench.scheduler.step()
    long, _ = bench.add(CHUNK * 6, max_tokens=5)
    bench.scheduler.step()
    newcomer, _ = bench.add(7, max_tokens=5)
    bench.scheduler.step()
    assert not long.sequences[0].tokens
    assert newcomer.sequences[0].tokens
    assert len(running.sequences[0].tokens) == 4
    bench.finish()
    assert long.sequences[0].tokens == bench.tokens(CHUNK * 6, max_tokens=5)
    assert newcomer.sequences[0].tokens == bench.tokens(7, max_tokens=5)
    assert running.sequences[0].tokens == bench.tokens(4, max_tokens=30)


def test_a_long_prompt_that_is_cancelled_halfway_leaves_nothing_behind(bench: Bench) -> None:
    long, heard = bench.add(CHUNK * 6)
    bench.scheduler.step()
    assert bench.scheduler.active == long.sequences
    long.cancelled = True
    assert not bench.scheduler.step() or not bench.scheduler.step()
    assert bench.scheduler.active == []
    heard.wait()


class Leaving(Request):
    """A request that is cancelled at the ``looks_left``-th look at it from now, as another thread may do at any."""

    looks_left = 10**9

    @property
    def cancelled(self) -> bool:  # type: ignore[override]
        self.looks_left -= 1
        return self.looks_left <= 0

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        pass


@pytest.mark.parametrize("looks", range(1, 5))
@pytest.mark.parametrize("where", ["running", "half computed", "waiting"])
def test_a_request_that_is_cancelled_while_another_is_dropped_ends(where: str, looks: int) -> None:
    bench = Bench(max_batch=1)
    if where == "waiting":
        bench.add(5, max_tokens=30)
        bench.scheduler.step()
    request, heard = bench.add(CHUNK * 6 if where == "half computed" else 5, max_tokens=100)
    request.__class__ = Leaving
    bench.scheduler.step()
    other, _ = bench.add(6)
    companion, _ = bench.add(7)
    companion.cancelled = True
    assert isinstance(request, Leaving)
    request.looks_left = looks
    bench.finish()
    assert heard.wait().error is None
    assert len(other.sequences[0].tokens) == 8


class ClosedBefore(threading.Event):
    """The scheduler's wake-up, which closes the scheduler just before it is cleared, as another thread may."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def clear(self) -> None:
        self._scheduler.close()
        super().clear()


def test_a_scheduler_that_is_closed_while_it_begins_to_look_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "IDLE_SECONDS", 0.01)
    closing = Bench(max_batch=1).scheduler
    closing._wake = ClosedBefore(closing)
    thread = threading.Thread(target=closing.run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_a_long_prompt_that_comes_again_goes_on_where_it_was_given_up() -> None:
    bench = Bench(prefixes=64)
    given_up, _ = bench.add(CHUNK * 6)
    bench.scheduler.step()
    bench.scheduler.step()
    given_up.cancelled = True
    bench.finish()
    again, _ = bench.add(CHUNK * 6)
    bench.finish()
    assert bench.scheduler.counters["prefix_cache_hits"] == 2 * CHUNK
    assert again.sequences[0].tokens == Bench().tokens(CHUNK * 6)


def test_no_more_run_than_max_batch_and_none_is_forgotten(bench: Bench) -> None:
    requests = [bench.add(3 + i, max_tokens=6 + i)[0] for i in range(11)]
    most = 0
    while bench.scheduler.step():
        most = max(most, len(bench.scheduler.active))
    assert most == 4
    for i, request in enumerate(requests):
        assert request.sequences[0].tokens == bench.tokens(3 + i, max_tokens=6 + i)


def test_a_full_cache_evicts_the_youngest_who_then_goes_on_as_before() -> None:
    tight = Bench(cells=4 * 64)
    free = Bench()
    requests = [tight.add(20 + i, max_tokens=80)[0] for i in range(4)]
    tight.finish()
    assert tight.scheduler.counters["preemptions"] > 0
    for i, request in enumerate(requests):
        assert request.sequences[0].tokens == free.tokens(20 + i, max_tokens=80)


def test_choices_of_one_request_are_computed_from_one_prefill(bench: Bench) -> None:
    before = bench.scheduler.counters["prefill_tokens"]
    request, heard = bench.add(40, n=3, max_tokens=6)
    bench.finish()
    assert bench.scheduler.counters["prefill_tokens"] - before == 40
    expected = bench.tokens(40, max_tokens=6)
    assert [sequence.tokens for sequence in request.sequences] == [expected] * 3
    assert set(heard.wait().reasons) == {0, 1, 2}


@pytest.mark.parametrize(("paging", "cells"), [("pages", 4 * 48), (GATHERED, (2 + 4) * BLOCK)])
def test_choices_need_no_more_memory_than_a_copy_takes(
    paging: str, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks: the whole ones of the prompt once, and one for each choice."""
    with_paging(monkeypatch, PAGINGS[paging])
    expected = Bench().tokens(40)
    for less in (0, 1):
        bench = Bench(cells=cells - less)
        slots = bench.model.runner.slots
        slots.longest = 48
        request, heard = bench.add(40, n=4)
        for _ in range(3):
            bench.scheduler.step()
        assert len(bench.scheduler.active) == 4 - less
        bench.finish()
        assert [sequence.tokens for sequence in request.sequences] == [expected] * 4
        assert heard.wait().error is None
        counters = bench.scheduler.counters
        assert (counters["preemptions"], counters["prefill_steps"]) == (0, 3 * (1 + less))
        assert not isinstance(slots, BlockCache) or slots.table.used == 0


@pytest.mark.parametrize("cells", [96, 128, 200, 300])
@pytest.mark.parametrize("paging", PAGINGS)
def test_choices_beside_a_long_prompt_in_a_full_cache(paging: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Bench()
    with_paging(monkeypatch, PAGINGS[paging])
    bench = Bench(cells=cells)
    bench.model.runner.slots.longest = 96
    asked = [(70, 20, 1), (12, 9, 3), (75, 12, 2), (33, 30, 3)]
    requests = [bench.add(length, max_tokens=most, n=n)[0] for length, most, n in asked]
    bench.finish()
    for request, (length, most, n) in zip(requests, asked, strict=True):
        answer = expected.tokens(length, max_tokens=most)
        assert [sequence.tokens for sequence in request.sequences] == [answer] * n
    slots = bench.model.runner.slots
    assert not isinstance(slots, BlockCache) or slots.table.used == 0


def test_memory_is_given_back_and_taken_again(bench: Bench) -> None:
    slots = bench.model.runner.slots
    expected = bench.tokens(9)
    assert slots.rows
    slots.release()
    assert (slots.rows, slots.capacity) == (0, 0)
    assert bench.tokens(9) == expected


def test_usage_is_the_share_of_cells_in_use(bench: Bench) -> None:
    request, _ = bench.add(10)
    bench.scheduler.step()
    assert bench.scheduler.usage == request.sequences[0].cached / bench.model.runner.slots.cells > 0
    bench.finish()
    assert bench.scheduler.usage == 0


def test_requests_with_one_beginning_wait_for_the_first_and_compute_only_their_own_end() -> None:
    bench = Bench(prefixes=64)
    begin = [3 + i for i in range(12 * CHUNK)]
    requests = [bench.add_prompt([*begin, 200 + i, 7])[0] for i in range(4)]
    other, _ = bench.add(5)
    bench.finish()
    counters = bench.scheduler.counters
    assert counters["prefix_cache_queries"] == 4 * (len(begin) + 2) + 5
    assert counters["prefix_cache_hits"] == 3 * len(begin)
    assert counters["prefill_tokens"] == len(begin) + 4 * 2 + 5
    alone = Bench()
    for i, request in enumerate(requests):
        reference, _ = alone.add_prompt([*begin, 200 + i, 7])
        alone.finish()
        assert request.sequences[0].tokens == reference.sequences[0].tokens
    assert other.sequences[0].tokens == alone.tokens(5)


def test_others_pass_those_that_wait_for_a_beginning() -> None:
    bench = Bench(prefixes=64)
    begin = [3 + i for i in range(12 * CHUNK)]
    leader, _ = bench.add_prompt([*begin, 1])
    follower, _ = bench.add_prompt([*begin, 2])
    bench.scheduler.step()
    other, _ = bench.add(5)
    bench.scheduler.step()
    bench.scheduler.step()
    assert other.sequences[0].tokens
    assert not leader.sequences[0].tokens
    assert bench.scheduler.active == [*other.sequences, *leader.sequences]
    leader.cancelled = True
    bench.finish()
    assert len(follower.sequences[0].tokens) == 8
