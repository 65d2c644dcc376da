"""Which model a request means, and what a changed models.yml does to the running ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from quintet_common.app import create_app
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.pool import ModelPool
from quintet_common.worker.process import State

A = ModelSpec(id="a", aliases=["Anna"], kind="embedding", path="embedded:echo")
B = ModelSpec(id="b", kind="embedding", path="embedded:echo", default=True)
C = ModelSpec(id="c", kind="rerank", path="embedded:echo")


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelPool[Any]]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pool: ModelPool[Any] = ModelPool([A, B, C], "echo_engine:create_engine", dict[str, str])
    pool.start()
    yield pool
    await pool.close()


def test_a_model_is_found_by_id_by_alias_and_as_the_default(pool: ModelPool[Any]) -> None:
    assert pool.find("a").spec is A
    assert pool.find("Anna").spec is A
    assert pool.find(None, "embedding").spec is B
    assert pool.find(None, "rerank").spec is C


@pytest.mark.parametrize(("name", "kind"), [("none", None), ("a", "rerank"), (None, "chat")])
def test_what_is_not_there_is_model_not_found(pool: ModelPool[Any], name: str | None, kind: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        pool.find(name, kind)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(("name", "meant"), [("ana", "Anna"), ("ANNA", "Anna"), ("Anna_", "Anna")])
def test_a_name_that_is_nearly_one_is_told_which(pool: ModelPool[Any], name: str, meant: str) -> None:
    with pytest.raises(ApiError, match=f"The model {name!r} does not exist; did you mean {meant!r}"):
        pool.find(name)


async def test_a_reload_keeps_what_is_unchanged(pool: ModelPool[Any]) -> None:
    before = {worker.spec.id: worker for worker in pool}
    changed = msgspec.structs.replace(B, aliases=["Bob"], max_waiting=7)
    renamed = msgspec.structs.replace(A, aliases=["Anne"])
    await pool.apply([renamed, changed])
    after = {worker.spec.id: worker for worker in pool}
    assert after["a"] is before["a"] is pool.find("Anne")
    with pytest.raises(ApiError):
        pool.find("Anna")
    assert after["b"] is not before["b"]
    assert set(after) == {"a", "b"}
    assert before["c"].state is State.STOPPED
    assert pool.find("Bob").spec is changed
    await asyncio.wait_for(after["b"].until(State.READY), 120)


async def test_reloads_take_effect_in_their_order_and_a_changed_model_is_known_all_the_time(
    pool: ModelPool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = asyncio.Event()
    old = pool.find("b")
    stop = old.stop

    async def slowly(grace: float) -> None:
        await stopped.wait()
        await stop(grace)

    monkeypatch.setattr(old, "stop", slowly)
    changed = msgspec.structs.replace(B, max_waiting=7)
    first = asyncio.create_task(pool.apply([changed, C]))
    await asyncio.sleep(0)
    assert pool.find("b").spec is changed
    second = asyncio.create_task(pool.apply([A]))
    await asyncio.sleep(0)
    stopped.set()
    await asyncio.gather(first, second)
    assert [worker.spec for worker in pool] == [A]


async def test_a_pool_that_is_closed_during_a_reload_starts_nothing(
    pool: ModelPool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = asyncio.Event()
    old = pool.find("b")
    stop = old.stop

    async def slowly(grace: float = 0) -> None:
        await closed.wait()
        await stop(grace)

    monkeypatch.setattr(old, "stop", slowly)
    reload = asyncio.create_task(pool.apply([msgspec.structs.replace(B, max_waiting=7)]))
    await asyncio.sleep(0)
    new = pool.find("b")
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    closed.set()
    await asyncio.gather(closing, reload)
    assert new.pid is None
    assert new.state is State.STOPPED


@pytest.mark.parametrize("closed", [False, True])
async def test_what_runs_in_a_model_that_changes_has_time_to_end(pool: ModelPool[Any], closed: bool) -> None:
    old = pool.find("b")
    async with asyncio.timeout(120):
        await old.until(State.READY)
        async with await old.submit({"text": "word " * (10_000 if closed else 20), "delay": 0.02}) as job:
            await anext(job)
            reload = asyncio.create_task(pool.apply([msgspec.structs.replace(B, max_waiting=7)], grace=100))
            await anext(job)
            new = pool.find("b")
            assert new is not old
            assert new.pid is None, "it waits for the memory of the old one"
            if closed:
                await pool.close()
                with pytest.raises(ApiError, match="was unloaded during this request"):
                    [event async for event in job]
            else:
                assert len([event async for event in job]) == 18
        await reload
        await new.until(State.STOPPED if closed else State.READY)
        assert old.state is State.STOPPED


async def test_what_does_not_end_in_time_is_told_why(pool: ModelPool[Any]) -> None:
    old = pool.find("b")
    async with asyncio.timeout(120):
        await old.until(State.READY)
        async with await old.submit({"text": "word " * 10_000, "delay": 0.02}) as job:
            await pool.apply([A], grace=0.1)
            with pytest.raises(ApiError, match="was unloaded during this request"):
                [event async for event in job]


async def test_a_model_that_was_given_up_is_told_and_tried_again_by_a_reload(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    weights = tmp_path / "weights"
    spec = ModelSpec(id="a", kind="chat", path=str(weights))
    pool: ModelPool[Any] = ModelPool([spec], "echo_engine:create_engine", dict[str, str])
    app = create_app("test", pool, [])
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test")
    async with asyncio.timeout(60), app.router.lifespan_context(app), client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        (before,) = pool
        await before.until(State.FAILED)
        says = f"the model 'a' is not there: {weights} does not exist."
        assert (await client.get("/health")).json() == {"status": "ok", "failed": {"a": says}}
        assert (await client.get("/v1/models/a")).json()["note"] == says
        weights.mkdir()
        (weights / "config.json").write_text("{}")
        (weights / "tokenizer.json").touch()
        (weights / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        await pool.apply([spec])
        (after,) = pool
        await after.until(State.READY)
        assert (await client.get("/health")).json() == {"status": "ok"}
