"""What answers cost, as it is read off them; and what an operator sees."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from quintet_router.usage import WINDOW, read_usage
from router.harness import END, STREAM, Door, FakeUpstream, Response, card, chunk, http, open_door, read_response, until
from router.test_keys import bearer, key, locked_door


async def local(door: Door, path: str) -> Response:
    """What a client on this machine gets; the harness says another host."""
    reader, writer = await door.connect()
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return await read_response(reader)


CHAT = b'{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":34,"prompt_tokens_details":{"cached_tokens":9}}}'


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (CHAT, {"prompt_tokens": 12, "completion_tokens": 34}),
        (b"data: " + CHAT + b"\n\ndata: [DONE]\n\n", {"prompt_tokens": 12, "completion_tokens": 34}),
        (b'{"usage": {"input_tokens": 3, "output_tokens": 4}, "x": 1}', {"prompt_tokens": 3, "completion_tokens": 4}),
        (b'data: {"usage":{"prompt_tokens":1}}\n\ndata: {"usage":{"prompt_tokens":2}}\n\n', {"prompt_tokens": 2}),
        (b'{"usage":null}', {}),
        (b'{"content":"{\\"usage\\":{\\"prompt_tokens\\":900}}"}', {}),
        (b'{"usage":{"prompt_tokens":1', {}),
        (b'{"usage":{"input_tokens":4,"output_tokens":9,"characters":4,"audio_seconds":1.5}}',
         {"characters": 4, "audio_seconds": 1.5}),
        (b"", {}),
        (b'"usage":{' * (WINDOW // 9), {}),
    ],
)  # fmt: skip
def test_what_an_answer_says(tail: bytes, expected: dict[str, float]) -> None:
    assert read_usage([], tail) == expected


def test_headers_say_it_too() -> None:
    headers = [(b"content-type", b"image/png"), (b"x-quintet-usage", b"images=2, made_up=3")]
    assert read_usage(headers, CHAT.replace(b"prompt", b"input")) == {"images": 2}
    assert read_usage([(b"x-quintet-usage", b"vectors=3")], CHAT) == {
        "vectors": 3,
        "prompt_tokens": 12,
        "completion_tokens": 34,
    }


async def test_usage_is_found_however_the_bytes_arrive() -> None:
    stream = b'data: {"x":1}\n\n' * 300 + b"data: " + CHAT + b"\n\ndata: [DONE]\n\n"

    async def dribble(request: Any, _: Any, writer: asyncio.StreamWriter) -> None:
        size = request.json["size"]
        writer.write(STREAM)
        for start in range(0, len(stream), size):
            writer.write(chunk(stream[start : start + size]))
            if len(stream) - start < 200:
                await asyncio.sleep(0.001)
        writer.write(END)

    async with open_door(FakeUpstream(dribble)) as door:
        for size in (7, 190, 100_000):
            assert (await door.chat(size=size)).body == stream
        assert await door.metric("quintet_usage_total", model="m", unit="prompt_tokens") == 36
        assert await door.metric("quintet_usage_total", model="m", unit="completion_tokens") == 102
        assert await door.metric("quintet_usage_total", model="m", unit="events") == 0


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
async def test_a_stream_that_is_left_before_it_tells_its_usage_is_counted_in_events(line_end: bytes) -> None:
    async def endless(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for _ in range(10):
            writer.write(chunk(b'data: {"x":1}' + line_end * 2))
        await asyncio.sleep(10)

    async with open_door(FakeUpstream(endless, [{"id": "m"}])) as door:
        _, writer = await door.send("/v1/chat/completions", {"model": "m"})
        await until(lambda: sum(exchange.events for exchange in door.router._proxy._active) == 10)
        writer.transport.abort()
        await until(lambda: not door.router._proxy._active)
        assert await door.metric("quintet_usage_total", model="m", unit="events") == 10


@pytest.mark.parametrize("left", [False, True])
async def test_a_service_is_asked_later_for_what_it_could_not_tell(left: bool) -> None:
    """Sound that streams, and a stream that its client leaves; the service knows it a moment later."""
    questions: list[str] = []

    async def speak(request: Any, _: Any, writer: asyncio.StreamWriter) -> None:
        if request.path.startswith("/quintet/usage/"):
            questions.append(request.path)
            writer.write(http(200, b'{"audio_seconds":2.5,"completion_tokens":4}' if len(questions) > 1 else b"{}"))
            return
        if left:
            writer.write(STREAM + chunk(b'data: {"x":1}\n\n'))
            await asyncio.sleep(10)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\nx-quintet-usage: later\r\ntransfer-encoding: chunked"
        writer.write(head + b"\r\n\r\n" + chunk(b"sound") + END)

    async with open_door(FakeUpstream(speak, cards=[card("m", kind="tts")])) as door:
        reader, writer = await door.send("/v1/audio/speech", {"model": "m"}, "x-request-id: s?1")
        await reader.readuntil(b"\r\n\r\n")
        if left:
            writer.transport.abort()
        await until(lambda: len(questions) == 2)
        await until(lambda: not door.router._proxy._recorder._late._asking)
        assert questions[0] == "/quintet/usage/s%3F1"
        for unit, amount in {"audio_seconds": 2.5, "completion_tokens": 4, "events": 0, "requests": 1}.items():
            assert await door.metric("quintet_usage_total", model="m", unit=unit) == amount


async def test_our_services_are_asked_for_it_and_others_are_not() -> None:
    ours, other = FakeUpstream(cards=[card("a")]), FakeUpstream(cards=[{"id": "b"}])
    async with open_door(ours, other) as door:
        await door.chat("x-quintet-usage: mine", model="a")
        await door.chat("x-quintet-usage: mine", model="b")
    assert ours.requests[0].all("x-quintet-usage") == ["ask"]
    assert other.requests[0].all("x-quintet-usage") == []


async def test_errors_cost_nothing() -> None:
    async def refuse(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(400, CHAT))

    async with open_door(FakeUpstream(refuse)) as door:
        await door.chat()
        assert b"quintet_usage_total{" not in (await door.get("/metrics")).body


async def test_trace_context_passes_untouched() -> None:
    upstream = FakeUpstream()
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with open_door(upstream) as door:
        await door.chat(f"traceparent: {parent}", "tracestate: a=1,b=2", "baggage: x=y")
    request = upstream.requests[0]
    assert [request.all(name) for name in ("traceparent", "tracestate", "baggage")] == [[parent], ["a=1,b=2"], ["x=y"]]


async def test_the_upstreams_as_an_operator_sees_them() -> None:
    async def wait(*_: Any) -> None:
        await asyncio.sleep(10)

    busy, gone = FakeUpstream(wait), FakeUpstream(cards=[{"id": "x"}])
    async with open_door(busy, gone, max_concurrent=4) as door:
        await gone.stop()
        await until(lambda: not door.router.fleet.upstreams[1].breaker.closed)
        await door.send("/v1/chat/completions", {"model": "m"})
        await until(lambda: len(busy.requests) == 1)
        first, second = (await local(door, "/admin/upstreams")).json["upstreams"]
        assert (first["upstream"], first["state"], first["in_flight"]) == (busy.url[7:], "up", 1)
        assert (first["max_concurrent"], first["service"], first["breaker"]["state"]) == (4, "quintet", "closed")
        assert first["models"] == [{"id": "m", "state": "ready"}]
        assert (second["state"], second["breaker"]["cause"], second["service"]) == ("down", "connect", "other")


async def test_only_admins_look_behind_the_door(tmp_path: Path) -> None:
    async with locked_door(tmp_path, [key("a"), key("root", admin=True)], FakeUpstream(), open_metrics=False) as door:
        for path in ("/admin/upstreams", "/metrics"):
            assert (await door.get(path)).status == 401
            assert (await door.get(path, bearer("a"))).status == 403
            assert (await door.get(path, bearer("root"))).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["host: localhost:8000"], 200),
        (["host: 127.0.0.1:8000"], 200),
        (["host: [::1]:8000"], 200),
        (["host: attacker.example:8000"], 403),  # a page in a browser, led here by DNS
        (["host: localhost", "x-forwarded-for: 1.2.3.4"], 403),
        (["host: localhost", "via: 1.1 proxy"], 403),
    ],
)
async def test_without_keys_only_this_machine_looks_behind_the_door(headers: list[str], status: int) -> None:
    async with open_door(FakeUpstream()) as door:
        reader, writer = await door.connect()
        writer.write("\r\n".join(["GET /admin/upstreams HTTP/1.1", *headers, "", ""]).encode())
        assert int((await reader.readline()).split()[1]) == status


async def test_the_documentation_needs_no_network() -> None:
    async with open_door(FakeUpstream()) as door:
        page = (await door.get("/docs")).body.decode()
        assert "//" not in page.replace("<!doctype html>", "")
        for name, kind in (("swagger-ui.css", "text/css"), ("swagger-ui-bundle.js", "text/javascript")):
            assert f'"docs/static/{name}"' in page
            asset = await door.get(f"/docs/static/{name}")
            assert (asset.status, asset.get("content-type").split(";")[0]) == (200, kind)
            assert len(asset.body) > 100_000
        assert "security" not in (await door.get("/openapi.json")).json


async def test_the_documentation_asks_for_a_key_where_one_is_needed(tmp_path: Path) -> None:
    async with locked_door(tmp_path, [key("a")], FakeUpstream()) as door:
        document = (await door.get("/openapi.json")).json
        assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
        assert document["security"] == [{"key": []}]
