"""Which model a request means, and what a changed models.yml does to the running ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
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
    await asyncio.wait_for(after["b"].until(State.READY), 30)
