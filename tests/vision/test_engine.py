"""Scheduling in the worker: merging, seeds, cancels, limits, and errors that stay where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_vision.backends.base import Item, OnStep, Plan, Render
from quintet_vision.canvas import read_image
from quintet_vision.engine import ImageEngine, preview_steps
from quintet_vision.protocol import Accepted, Draw, Finished, Preview, Started


class Collected:
    """Takes the place of Emit: keeps what an engine sends for one request."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.error: ApiError | None = None
        self.ended = threading.Event()
        self.ends = 0

    def __call__(self, event: Any) -> None:
        self.events.append(event)

    def done(self) -> None:
        self.ends += 1
        self.ended.set()

    def fail(self, error: ApiError) -> None:
        self.error = error
        self.done()

    def wait(self) -> Collected:
        assert self.ended.wait(60)
        return self

    def pictures(self) -> list[np.ndarray[Any, Any]]:
        found = sorted((e for e in self.wait().events if isinstance(e, Finished)), key=lambda e: e.index)
        return [np.asarray(read_image(each.data), dtype=int) for each in found]


class Gate:
    """Stands before the backend's draw: holds it, counts its batches, and spoils the prompt 'spoiled'."""

    def __init__(self, draw: Callable[..., list[Image.Image]]) -> None:
        self._draw = draw
        self.open = threading.Event()
        self.open.set()
        self.batches: list[list[str]] = []
        self.steps = 0

    def __call__(self, plan: Plan, items: list[Item], on_step: OnStep) -> list[Image.Image]:
        self.batches.append([item.prompt for item in items])
        if any(item.prompt == "spoiled" for item in items):
            raise RuntimeError("a kernel failed")
        if any(item.prompt == "huge" for item in items):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

        def counted(step: int, render: Render) -> Collection[int]:
            assert self.open.wait(60)
            self.steps += 1
            return on_step(step, render)

        return self._draw(plan, items, counted)


@pytest.fixture(scope="module")
def engine() -> ImageEngine:
    spec = ModelSpec(id="emoji-64", kind="image", path="embedded:emoji-64", max_waiting=4, max_batch=4)
    engine = ImageEngine(spec)
    engine.load(lambda *_: None)
    return engine


@pytest.fixture
def gate(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(engine._backend.draw)
    monkeypatch.setattr(engine._backend, "draw", gate)
    yield gate
    gate.open.set()


_ids = iter(range(1, 10_000))


def submit(engine: ImageEngine, prompt: str = "a cat", **fields: Any) -> tuple[int, Collected]:
    emit, number = Collected(), next(_ids)
    fields = {"width": 64, "height": 64, "steps": 6, **fields}
    engine.submit(number, Draw(prompt=prompt, **fields), emit)  # type: ignore[arg-type]
    return number, emit


def held(engine: ImageEngine, gate: Gate, prompt: str = "sun", **fields: Any) -> tuple[int, Collected]:
    """A request that is being drawn and stays at its first step until the gate opens."""
    gate.open.clear()
    number, emit = submit(engine, prompt, **fields)
    until = time.monotonic() + 30
    while not any(isinstance(event, Started) for event in emit.events):
        assert time.monotonic() < until
        time.sleep(0.005)
    return number, emit


def test_requests_that_queued_share_a_batch_and_keep_their_pictures(engine: ImageEngine, gate: Gate) -> None:
    alone = [submit(engine, prompt, seed=seed)[1].pictures()[0] for prompt, seed in (("a cat", 5), ("lemon", 6))]
    _, first = held(engine, gate)
    merged = [submit(engine, prompt, seed=seed)[1] for prompt, seed in (("a cat", 5), ("lemon", 6))]
    _, wide = submit(engine, "sun", width=100, height=50)
    _, other = submit(engine, "tiger", steps=7)
    gate.open.set()
    together = [each.pictures()[0] for each in merged]
    first.wait(), other.wait()
    assert gate.batches[-3:] == [["sun"], ["a cat", "lemon", "sun"], ["tiger"]]
    assert wide.pictures()[0].shape == (50, 100, 3)
    for one, two in zip(alone, together, strict=True):
        assert np.abs(one - two).max() <= 2
    assert np.abs(together[0] - together[1]).max() > 50


def test_more_pictures_than_a_batch_holds_are_drawn_in_several(engine: ImageEngine, gate: Gate) -> None:
    _, emit = submit(engine, n=6)
    assert len(emit.pictures()) == 6
    assert [len(batch) for batch in gate.batches] == [4, 2]
    assert isinstance(emit.events[0], Accepted)
    assert sum(isinstance(event, Started) for event in emit.events) == 1


def test_a_plan_that_needs_the_model_alone_has_no_company(
    engine: ImageEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = engine._backend.plan
    monkeypatch.setattr(engine._backend, "plan", lambda request: replace(plan(request), alone=True))
    assert len(submit(engine, n=3)[1].pictures()) == 3
    assert [len(batch) for batch in gate.batches] == [1, 1, 1]


def test_a_cancelled_request_stops_within_a_step(engine: ImageEngine, gate: Gate) -> None:
    number, emit = held(engine, gate, steps=100)
    engine.cancel(number)
    assert emit.ended.is_set()
    before = gate.steps
    gate.open.set()
    submit(engine)[1].wait()
    assert gate.steps - before <= 1 + 6
    assert emit.ends == 1
    assert not emit.pictures()


def test_a_cancelled_neighbour_costs_the_others_nothing(engine: ImageEngine, gate: Gate) -> None:
    held(engine, gate)
    kept, gone = submit(engine, "a cat"), submit(engine, "lemon")
    engine.cancel(gone[0])
    gate.open.set()
    assert len(kept[1].pictures()) == 1
    assert gate.batches[-1] == ["a cat"]
    assert gone[1].ends == 1


def test_who_leaves_a_batch_is_drawn_no_further_and_the_others_are(engine: ImageEngine, gate: Gate) -> None:
    alone = submit(engine, "a cat", seed=5)[1].pictures()[0]
    held(engine, gate)
    gone, kept, rest = (submit(engine, prompt, seed=5, previews=2) for prompt in ("lemon", "a cat", "tiger"))
    rows: list[int] = []
    hook = engine._backend._pipe.transformer.register_forward_hook(lambda *call: rows.append(len(call[2])))
    draw = gate._draw

    def leaving(plan: Plan, items: list[Item], on_step: OnStep) -> list[Image.Image]:
        def step(number: int, render: Render) -> Collection[int]:
            if len(items) == 3 and number == 2:
                engine.cancel(gone[0])
                engine.cancel(rest[0])
            return on_step(number, render)

        return draw(plan, items, step)

    gate._draw = leaving
    gate.open.set()
    (picture,) = kept[1].pictures()
    hook.remove()
    assert np.abs(picture - alone).max() <= 1
    guided, rest_of_path = [6, 6, 2, 2], [1, 1]
    assert rows[-6:] == guided + rest_of_path
    assert gone[1].ends == rest[1].ends == 1
    previews = [event for event in kept[1].events if isinstance(event, Preview)]
    assert [event.number for event in previews] == [0, 1]
    assert not any(isinstance(event, Finished) for event in gone[1].events + rest[1].events)


def test_a_full_queue_refuses(engine: ImageEngine, gate: Gate) -> None:
    _, first = held(engine, gate)
    waiting = [submit(engine)[1] for _ in range(4)]
    assert engine.stats() == {"num_requests_running": 1, "num_requests_waiting": 4}
    with pytest.raises(ApiError) as caught:
        submit(engine)
    assert caught.value.status == 429
    assert 1 <= (caught.value.retry_after or 0) <= 120
    gate.open.set()
    for each in (first, *waiting):
        assert each.wait().error is None
    assert engine.stats() == {"num_requests_running": 0, "num_requests_waiting": 0}


def test_a_failing_request_does_not_fail_its_neighbours(engine: ImageEngine, gate: Gate) -> None:
    held(engine, gate)
    good, bad, huge = (submit(engine, prompt)[1] for prompt in ("a cat", "spoiled", "huge"))
    gate.open.set()
    assert len(good.pictures()) == 1
    assert bad.wait().error is not None
    assert (bad.error.status, "kernel" in bad.error.message) == (500, False)
    assert huge.wait().error is not None
    assert (huge.error.code, huge.error.retry) == ("out_of_memory", False)


def test_previews_come_in_order_before_the_picture(engine: ImageEngine) -> None:
    _, emit = submit(engine, n=2, previews=3, steps=8)
    emit.wait()
    for index in (0, 1):
        mine = [event for event in emit.events if isinstance(event, Preview | Finished) and event.index == index]
        assert [event.number for event in mine[:-1]] == [0, 1, 2]
        assert isinstance(mine[-1], Finished)


@pytest.mark.parametrize(
    ("steps", "previews", "due"), [(24, 3, {6: 0, 12: 1, 18: 2}), (2, 3, {1: 0}), (1, 3, {}), (9, 0, {})]
)
def test_previews_are_spread_evenly(steps: int, previews: int, due: dict[int, int]) -> None:
    assert preview_steps(steps, previews) == due
