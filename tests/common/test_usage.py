"""A service tells what an answer cost to who asks, and to nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI, Request, Response
from quintet_common import sse
from quintet_common.disconnect import StreamResponse
from quintet_common.instrument import Instrument
from quintet_common.observation import observation_of
from quintet_common.usage import Untold

app = FastAPI()


@app.get("/whole")
async def whole(request: Request) -> Response:
    seen = observation_of(request.scope)
    seen.use("images", 1)
    seen.use("images", 1)
    seen.use("audio_seconds", 1.23456)
    return Response(b"x", media_type="image/png")


@app.get("/stream")
async def stream(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        observation_of(request.scope).use("prompt_tokens", 1234567)
        yield sse.event({"x": 1})
        observation_of(request.scope).use("completion_tokens", 2)
        yield sse.DONE

    return sse.sse_response(events())


@app.get("/sound")
async def sound(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            observation_of(request.scope).use("audio_seconds", 0.5)
            yield b"x"

    return StreamResponse(pieces(), "audio/mpeg")


@app.get("/free")
async def free() -> dict[str, int]:
    return {}


service = Instrument(app, "chat", 1 << 20)


async def get(path: str, **headers: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(service)
    async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.get(path, headers=headers)


ASK = {"x-quintet-usage": "ask"}


async def test_before_an_answer_in_a_header() -> None:
    assert (await get("/whole", **ASK)).headers["x-quintet-usage"] == "images=2 audio_seconds=1.235"
    assert "x-quintet-usage" not in (await get("/free", **ASK)).headers


async def test_of_streams_afterwards_and_once() -> None:
    for path, usage in {
        "/sound": {"audio_seconds": 1.5},
        "/stream": {"prompt_tokens": 1234567, "completion_tokens": 2},
    }.items():
        response = await get(path, **ASK, **{"x-request-id": "a/7"})
        assert response.headers["x-quintet-usage"] == "later"
        assert response.content == (await get(path)).content
        assert (await get("/quintet/usage/a%2F7")).json() == usage
        assert (await get("/quintet/usage/a%2F7")).json() == {}
    await get("/sound", **{"x-request-id": "b"})
    await get("/whole", **ASK, **{"x-request-id": "c"})
    for told_or_not_asked in "bc":
        assert (await get(f"/quintet/usage/{told_or_not_asked}")).json() == {}


async def test_what_nobody_fetches_does_not_pile_up() -> None:
    untold = Untold()
    for number in range(3000):
        untold.keep(str(number), {"images": 1})
    assert len(untold._kept) == 1024
    assert untold.take("2999") == {"images": 1}


@pytest.mark.parametrize("path", ["/whole", "/stream", "/free", "/sound"])
async def test_nobody_else_is_told(path: str) -> None:
    response = await get(path)
    assert "x-quintet-usage" not in response.headers
    assert b"quintet-usage" not in response.content
