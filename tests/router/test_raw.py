"""HTTP/1.1 as clients really send it, and as attackers do: on the raw socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from router.harness import FakeUpstream, http, open_door, raw, read_head, read_response, until

CHAT = b'{"model": "m", "messages": []}'


async def read_all(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 20)


def head(*lines: bytes, method: bytes = b"POST", target: bytes = b"/v1/chat/completions") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\nhost: x\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


@pytest.mark.parametrize("cut", [7, 60, 2000])
async def test_a_client_that_would_rather_speak_another_protocol_is_served_all_the_same(cut: int) -> None:
    """Java's HttpClient sends these headers with its first request."""
    upstream = FakeUpstream()
    ask = [b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAEAAEAAAAIAAAABAAMAAABk"]
    first = head(*ask, b"content-length: %d" % len(CHAT)) + CHAT
    chunked = head(*ask, b"transfer-encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT)
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        for sent in (
            first,
            chunked,
            head(*ask, method=b"GET", target=b"/v1/models"),
            raw("/v1/chat/completions", CHAT),
        ):
            for start in range(0, len(sent), cut if cut > 1 else 97):
                writer.write(sent[start : start + (cut if cut > 1 else 97)])
                await asyncio.sleep(0.002)
            assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
    assert [request.body for request in upstream.requests] == [CHAT] * 3
    assert not upstream.requests[0].all("upgrade")


async def test_many_requests_in_one_packet_are_answered_in_order() -> None:
    upstream = FakeUpstream()
    upgrade = head(b"connection: upgrade", b"upgrade: h2c", method=b"GET", target=b"/v1/models")
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        writer.write((raw("/v1/chat/completions", CHAT) + upgrade) * 40)
        for _ in range(40):
            assert b"path" in (await asyncio.wait_for(read_response(reader), 20)).body
            assert b"object" in (await asyncio.wait_for(read_response(reader), 20)).body
    assert len(upstream.requests) == 40


async def test_garbage_after_a_request_does_not_spoil_its_answer() -> None:
    async def slowly(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(http(200, b'{"answer": 1}'))

    async with open_door(FakeUpstream(slowly)) as door:
        reader, writer = await door.connect()
        writer.write(raw("/v1/chat/completions", CHAT) + b"\x00\x01 garbage\r\n\r\n")
        response = await asyncio.wait_for(read_response(reader), 20)
        assert (response.status, response.json, response.get("connection")) == (200, {"answer": 1}, "close")
        assert await read_all(reader) == b""


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"5 \x00\r\nhello\r\n0\r\n\r\n",
        b"\r\n",
    ],
)
async def test_a_wrong_chunk_is_refused_and_goes_nowhere(body: bytes) -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        writer.write(head(b"transfer-encoding: chunked") + body)
        response = await asyncio.wait_for(read_response(reader), 20)
        assert (response.status, response.error["type"]) == (400, "invalid_request_error")
        assert await read_all(reader) == b""
        assert await door.metric("quintet_router_in_flight") == 0
    assert not upstream.requests


@pytest.mark.parametrize(
    "line",
    [
        b"POST /v1/chat/completions HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}",
        b"POST /v1/chat/completions HTTP/3.0\r\nhost: x\r\n\r\n",
        b"PO\x00ST / HTTP/1.1\r\n\r\n",
        b"POST /v1/chat\x00/completions HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET / HTTP/1.1\r\nhost: x\r\nfolded: a\r\n\tb\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused(line: bytes) -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        writer.write(line)
        response = await asyncio.wait_for(read_response(reader), 20)
        assert response.status == 400
        assert await read_all(reader) == b""
    assert not upstream.requests


async def test_more_headers_than_anyone_needs() -> None:
    async with open_door(FakeUpstream()) as door:
        reader, writer = await door.connect()
        writer.write(head(*[b"a%d:" % number for number in range(3000)], b"content-length: 0"))
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 431
        assert await read_all(reader) == b""
        reader, writer = await door.connect()
        writer.write(head(*[b"a%d: x" % number for number in range(200)], method=b"GET", target=b"/v1/models"))
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200


async def test_the_whole_address_in_the_request_line() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        target = b"http://elsewhere:99/v1/chat/completions?x=1#part"
        writer.write(head(b"content-length: %d" % len(CHAT), target=target) + CHAT)
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
    assert upstream.requests[0].path == "/v1/chat/completions?x=1"
    assert upstream.requests[0].all("host") == [upstream.url.removeprefix("http://")]


@pytest.mark.parametrize("target", [b"*", b"x:80", b"//", b"/%", b"/v1/%00", b"/v1/chat/completions/%2e%2e"])
async def test_strange_targets_lead_nowhere(target: bytes) -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        writer.write(head(method=b"OPTIONS", target=target))
        assert (await asyncio.wait_for(read_response(reader), 20)).status in (400, 404, 405)
    assert not upstream.requests


async def test_an_old_client_gets_an_answer_that_ends_with_its_connection() -> None:
    async def stream(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    async with open_door(FakeUpstream(stream)) as door:
        reader, writer = await door.connect()
        old = head(b"content-length: %d" % len(CHAT), b"connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
        writer.write(old + CHAT)
        _, headers = await read_head(reader)
        assert ("connection", "close") in headers
        assert not [value for name, value in headers if name in ("transfer-encoding", "content-length")]
        assert await read_all(reader) == b"data: 1\n\ndata: 2\n\n"


async def test_head_is_answered_without_a_body() -> None:
    async with open_door(FakeUpstream()) as door:
        reader, writer = await door.connect()
        targets = {b"/v1/chat/completions": "405", b"/v1/models": "200", b"/v1/models/m": "200", b"/v1/none": "404"}
        targets |= {b"/docs/static/swagger-ui-bundle.js": "200", b"/ready": "200"}
        writer.write(b"".join(head(method=b"HEAD", target=target) for target in targets))
        for target, status in targets.items():
            line, headers = await read_head(reader)
            assert line.split()[1] == status, target
            assert dict(headers)["content-length"] != "0"
        writer.write(head(method=b"GET", target=b"/health"))
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200


async def test_a_slow_answer_is_not_cut_off_by_the_beginning_of_the_next_request() -> None:
    async def slowly(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.8)
        writer.write(http(200, b"{}"))

    async with open_door(FakeUpstream(slowly), head_timeout=0.3) as door:
        reader, writer = await door.connect()
        writer.write(raw("/v1/chat/completions", CHAT) + b"POST /v1/ch")
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
        assert await read_all(reader) == b""  # the rest of the next one did not come in time


async def test_a_body_that_is_never_wanted_is_read_past() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        writer.write(head(b"content-length: 300000", target=b"/v1/nothing") + b"x" * 300_000)
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 404
        writer.write(raw("/v1/chat/completions", CHAT))
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200


async def test_time_limits_hold_while_a_body_arrives_slowly_elsewhere() -> None:
    """A request whose body is still coming must not stop the clock of the others."""

    async def never(_: Any, __: Any, ___: Any) -> None:
        await asyncio.sleep(30)

    async with open_door(FakeUpstream(never), first_byte_timeout={"": 0.4}, watch_seconds=0.1) as door:
        _, slow = await door.connect()
        slow.write(head(b"content-length: 100") + b"{")
        await asyncio.sleep(0.3)
        reader, writer = await door.connect()
        writer.write(raw("/v1/chat/completions", CHAT))
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 504
        slow.transport.abort()
        await until(lambda: not door.router._proxy._active)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "m", "temperature": NaN}', "temperature"),
        (b'{"model": "m", "a": "\\u00e9", "messages": [{"content": "\\ud83d"}]}', "messages[0].content"),
        ('{"model": "m", "ä": "ß", "b\\u0061d": -Infinity}'.encode(), "bad"),
        (b'{"model": "\\ud800"}', "model"),
        (b'{"model": "m", "input": 1e999}', "input"),
        (b'{"model": "m", "n": 01}', None),
        (b'{"model": "m"', None),
        (b'{"model": "m", "n": [1,, 2]}', "n"),
        (b"", None),
    ],
)
async def test_the_member_that_cannot_be_read_is_named(body: bytes, param: str | None) -> None:
    async with open_door(FakeUpstream()) as door:
        response = await door.ask("/v1/chat/completions", body)
    assert (response.status, response.error["param"]) == (400, param)


async def test_blanks_are_not_collected() -> None:
    """Nor is what begins as no JSON object does: it is refused as soon as it is seen."""
    async with open_door(FakeUpstream()) as door:
        for begin in (b" " * 70_000, b" \n [1"):
            reader, writer = await door.connect()
            writer.write(head(b"content-length: 60000000") + begin)
            assert (await asyncio.wait_for(read_response(reader), 20)).status == 400
        reader, writer = await door.connect()
        writer.write(head(b"content-length: 99999999"))
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 413


async def test_a_moderation_without_a_model_goes_to_a_server_that_has_any() -> None:
    async def none(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(404, b"{}"))

    others = [FakeUpstream(none, [{"id": "a"}]), FakeUpstream(cards=[{"id": "b"}])]
    async with open_door(FakeUpstream(), *others) as door:
        for _ in range(4):
            response = await door.ask("/v1/moderations", {"input": "x"})
            assert (response.status, response.json["path"]) == (200, "/v1/moderations")
    assert len(others[1].requests) == 4
