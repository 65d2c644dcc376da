"""SIGTERM: who probes is told at once, what has begun ends, and nobody new is let in."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from router.harness import END, STREAM, Door, FakeUpstream, Response, card, chunk, raw, read_response, until
from router.test_process import EVENT, router_process

DONE = b"data: [DONE]\n\n"


class Halves:
    """An upstream that sends half a stream, and the rest when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.upstream = FakeUpstream(self._behave, [card("m"), card("later", state="loading")])

    async def _behave(self, request: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(EVENT))
        if not request.json.get("quick"):
            await self.go_on.wait()
        writer.write(chunk(EVENT) + chunk(DONE) + END)


async def never(*_: Any) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Door, Halves]]:
    halves = Halves()
    await halves.upstream.start()
    async with router_process("--upstream", halves.upstream.url, *arguments) as (running, door):
        await door.get("/v1/models")
        yield running, door, halves
    await halves.upstream.stop()


async def until_closed(door: Door) -> None:
    """Until nobody new gets in."""
    async with asyncio.timeout(20):
        with suppress(ConnectionRefusedError):
            while True:
                await door.connect()
                await asyncio.sleep(0.01)


async def until_leaving(door: Door) -> Response:
    """What ``/ready`` says once the signal has come."""
    while (ready := await door.get("/ready")).status == 200:  # noqa: ASYNC110  # it happens in another process
        await asyncio.sleep(0.01)
    return ready


async def test_sixty_four_open_streams_all_end_and_nobody_new_gets_in() -> None:
    async with process() as (running, door, halves):
        streams = [await door.send("/v1/chat/completions", {"model": "m"}) for _ in range(64)]
        await until(lambda: len(halves.upstream.requests) == 64)
        # Kept alive and idle; the second gets a request ready that arrives after the signal.
        kept = [await door.connect() for _ in range(2)]
        for reader, writer in kept:
            writer.write(raw("/v1/models", None, method="GET"))
            assert (await read_response(reader)).status == 200
        running.send_signal(signal.SIGTERM)
        await until_closed(door)
        reader, writer = kept[1]
        writer.write(raw("/v1/chat/completions", {"model": "m"}))
        refused = await asyncio.wait_for(read_response(reader), 20)
        assert (refused.status, refused.error["code"]) == (503, "stopping")
        assert refused.get("connection") == "close"
        assert refused.get("retry-after") == "1"
        assert await asyncio.wait_for(reader.read(), 20) == b""
        assert await asyncio.wait_for(kept[0][0].read(), 20) == b""
        halves.go_on.set()
        for reader, _ in streams:
            response = await asyncio.wait_for(read_response(reader), 20)
            assert response.complete
            assert response.body == EVENT + EVENT + DONE
            assert await asyncio.wait_for(reader.read(), 20) == b""
        assert await asyncio.wait_for(running.wait(), 20) is not None
        assert len(halves.upstream.requests) == 64


async def test_for_a_while_it_goes_on_but_says_that_it_leaves() -> None:
    async with process("--drain-delay", "1.5") as (running, door, halves):
        assert (await door.get("/ready")).status == 200
        halves.go_on.set()
        kept, writer = await door.connect()
        running.send_signal(signal.SIGTERM)
        began = time.monotonic()
        ready = await until_leaving(door)
        assert (ready.status, ready.json["stopping"]) == (503, True)
        assert (await door.get("/health")).status == 200
        response = await door.chat()  # whoever has not heard of it yet is served
        assert response.complete
        assert response.body.endswith(DONE)
        assert response.get("connection") == "close"
        writer.write(raw("/v1/chat/completions", {"model": "m"}))
        assert (await read_response(kept)).get("connection") == "close"
        await asyncio.wait_for(running.wait(), 20)
        assert time.monotonic() - began > 1.4


async def test_a_second_signal_ends_the_delay() -> None:
    async with process("--drain-delay", "60") as (running, door, _):
        running.send_signal(signal.SIGTERM)
        await until_leaving(door)
        running.send_signal(signal.SIGTERM)
        await asyncio.wait_for(running.wait(), 20)


async def test_grace_is_the_longest_that_a_stream_may_go_on() -> None:
    async with process("--grace", "0.5") as (running, door, halves):
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
        await until(lambda: len(halves.upstream.requests) == 1)
        running.send_signal(signal.SIGTERM)
        began = time.monotonic()
        response = await asyncio.wait_for(read_response(reader), 20)
        assert response.complete
        events = response.body.removeprefix(EVENT).removeprefix(b"data: ")
        assert json.loads(events)["error"]["code"] == "stopping"
        assert await asyncio.wait_for(reader.read(), 20) == b""
        await asyncio.wait_for(running.wait(), 20)
        assert time.monotonic() - began > 0.4


async def test_who_has_waited_in_vain_when_grace_is_over_is_told() -> None:
    """For a model that loads, for a turn, for an answer."""
    async with process("--grace", "0.5", "--max-concurrent", "1") as (running, door, halves):
        halves.upstream.behave = never
        asked = [await door.send("/v1/chat/completions", {"model": model}) for model in ("m", "m", "later")]
        await until(lambda: len(halves.upstream.requests) == 1)
        while await door.metric("quintet_router_waiting") < 2:  # noqa: ASYNC110  # it happens in another process
            await asyncio.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        for reader, _ in asked:
            response = await asyncio.wait_for(read_response(reader), 20)
            assert (response.status, response.error["code"]) == (503, "stopping")
            assert response.get("retry-after") == "1"
        await asyncio.wait_for(running.wait(), 20)
