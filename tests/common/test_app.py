"""The app that every service is, in-process: models, operations, errors, limits, disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, Self

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request
from openai.types import Model
from pydantic import BaseModel, Field, model_validator
from quintet_common import sse
from quintet_common.app import create_app
from quintet_common.dialect import RequestDialect
from quintet_common.disconnect import StreamResponse, or_disconnect
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.pool import ModelPool
from quintet_common.worker.process import State

SPEC = ModelSpec(id="org/echo", aliases=["Echo"], kind="chat", path="embedded:echo", default=True)


class Text(BaseModel):
    type: Literal["text"]
    text: str


class Picture(BaseModel):
    type: Literal["image_url"]
    image_url: dict[str, str]


class Body(BaseModel):
    count: int = Field(ge=1, le=10)
    stop: str | list[str] | None = None
    parts: list[Text | Picture] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.count == 7:
            raise ValueError("Not seven of all numbers")
        return self


async def slow(log: list[str]) -> str:
    try:
        await asyncio.sleep(30)
    finally:
        log.append("ended")
    return "never"


def routes(log: list[str]) -> APIRouter:
    router = APIRouter()

    @router.post("/count")
    async def count(body: Body, dialect: RequestDialect) -> dict[str, Any]:
        return {"count": body.count, "dialect": dialect.value}

    @router.get("/fail")
    async def fail() -> None:
        raise RuntimeError("secret detail")

    @router.post("/upload")
    async def upload(request: Request) -> int:
        return len(await request.form())

    @router.get("/slow")
    async def slow_route(request: Request) -> str:
        log.append("started")
        return await or_disconnect(request, slow(log))

    @router.get("/stream")
    async def stream() -> StreamResponse:
        async def events() -> AsyncIterator[bytes]:
            log.append("started")
            try:
                yield sse.event({"n": 1})
                await asyncio.sleep(30)
            finally:
                log.append("ended")

        return sse.sse_response(events())

    @router.get("/broken")
    async def broken() -> StreamResponse:
        async def events() -> AsyncIterator[bytes]:
            yield sse.event({"n": 1}, name="one")
            raise ApiError(503, "gone", code="worker_died")

        return sse.sse_response(events())

    return router


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
async def app(log: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pool: ModelPool[Any] = ModelPool([SPEC], "echo_engine:create_engine", dict[str, str])
    app = create_app("test", pool, [routes(log)], max_body=1 << 20)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def ready(app: FastAPI) -> None:
    (worker,) = app.state.pool
    await asyncio.wait_for(worker.until(State.READY), 120)


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_models_are_openai_models_with_their_state(app: FastAPI, client: Any, prefix: str) -> None:
    await ready(app)
    listed = (await client.get(f"{prefix}/models")).json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    model = Model.model_validate(card)
    assert (model.id, model.object, model.owned_by) == ("org/echo", "model", "quintet")
    assert (card["kind"], card["state"], card["aliases"], card["engine"]) == ("chat", "ready", ["Echo"], "echo")
    for name in ("org/echo", "Echo"):
        assert (await client.get(f"{prefix}/models/{name}")).json() == card


async def test_an_unknown_model_is_404_in_openai_shape(client: Any) -> None:
    response = await client.get("/v1/models/none")
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "The model 'none' does not exist.",
        "type": "not_found_error",
        "param": "model",
        "code": "model_not_found",
    }


async def test_health_answers_while_loading_and_ready_only_after(app: FastAPI, client: Any) -> None:
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/ready")).status_code == 503
    await ready(app)
    assert (await client.get("/ready")).status_code == 200


async def test_metrics_have_the_labels_and_the_model_state(app: FastAPI, client: Any) -> None:
    await ready(app)
    await client.post("/v1/count", json={"count": 3})
    text = (await client.get("/metrics")).text
    assert 'quintet_requests_total{code="200",endpoint="/count",model="",service="test"}' in text
    assert 'quintet_model_state{model="org/echo",service="test",state="ready"} 1.0' in text
    assert "quintet_worker_memory_bytes" in text


async def test_both_dialects_reach_the_route_and_are_told_apart(client: Any) -> None:
    assert (await client.post("/v1/count", json={"count": 1})).json()["dialect"] == "openai"
    assert (await client.post("/count", json={"count": 1})).json()["dialect"] == "zlai"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "count", "missing_required_parameter"),
        ({"count": "many"}, "count", "invalid_value"),
        ({"count": 99}, "count", "invalid_value"),
        ({"count": 1, "stop": 5}, "stop", "invalid_value"),
        ({"count": 1, "stop": ["a", 5]}, "stop[1]", "invalid_value"),
        (
            {"count": 1, "parts": [{"type": "image_url", "image_url": {"url": 5}}]},
            "parts[0].image_url.url",
            "invalid_value",
        ),
        ([], None, None),
        ("text", None, None),
    ],
)
async def test_invalid_bodies_are_400_and_name_the_field(client: Any, body: Any, param: Any, code: Any) -> None:
    response = await client.post("/v1/count", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)


async def test_a_rule_over_the_whole_body_says_itself(client: Any) -> None:
    response = await client.post("/v1/count", json={"count": 7})
    assert response.json()["error"]["message"] == "Not seven of all numbers."


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b'{"count": ', b"[" * 100_000])
async def test_what_is_no_json_is_400(client: Any, body: bytes) -> None:
    response = await client.post("/v1/count", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_over_the_limit_is_413(client: Any) -> None:
    response = await client.post("/v1/count", json={"count": 1, "stop": "x" * (2 << 20)})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


async def test_a_failing_route_is_500_without_a_trace(client: Any) -> None:
    response = await client.get("/v1/fail")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["x-request-id"]
    assert 'quintet_requests_total{code="500",endpoint="/fail"' in (await client.get("/metrics")).text


async def test_wrong_method_and_path(client: Any) -> None:
    response = await client.get("/v1/count")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert (await client.get("/v2/x")).json()["error"]["message"] == (
        "Unknown path: /v2/x. /docs lists what models of kind 'chat' answer."
    )


async def test_every_answer_has_a_request_id_and_keeps_a_sane_one(client: Any) -> None:
    assert (await client.get("/v1/models")).headers["x-request-id"].startswith("req_")
    assert (await client.get("/nothing", headers={"x-request-id": "abc"})).headers["x-request-id"] == "abc"
    odd = await client.get("/health", headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"].startswith("req_")


async def test_a_failure_in_a_stream_is_an_error_event(client: Any) -> None:
    response = await client.get("/v1/broken")
    assert response.headers["content-type"].startswith("text/event-stream")
    first, second = response.text.strip().split("\n\n")
    assert first == 'event: one\ndata: {"n":1}'
    assert json.loads(second.removeprefix("data: "))["error"]["code"] == "worker_died"


def scope_of(method: str, path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "headers": list(headers),
        "query_string": b"",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
        "http_version": "1.1",
        "root_path": "",
    }


@pytest.mark.parametrize("path", ["/v1/slow", "/v1/stream"])
async def test_work_ends_when_the_client_leaves(app: FastAPI, log: list[str], path: str) -> None:
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not log:
            return {"type": "http.request", "body": b"", "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    request = asyncio.create_task(app(scope_of("GET", path), receive, send))
    async with asyncio.timeout(10):
        while not log:  # noqa: ASYNC110  # the route appends to a plain list
            await asyncio.sleep(0.01)
        left.set()
        await request
    assert log == ["started", "ended"]


async def test_a_client_that_leaves_while_it_uploads_is_no_failure_of_the_service(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'--B\r\nContent-Disposition: form-data; name="a"', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(_: Any) -> None:
        pass

    with caplog.at_level("INFO"):
        await app(scope_of("POST", "/v1/upload", (b"content-type", b"multipart/form-data; boundary=B")), receive, send)
    assert [record.levelname for record in caplog.records if record.name == "quintet"] == []
    access = [record.getMessage() for record in caplog.records if record.name == "quintet.access"]
    assert json.loads(access[-1])["code"] == 499
