"""Answers on their way back: nothing changed, nothing held back, and every way in which one of the three may vanish."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from router.harness import (
    END,
    STREAM,
    Door,
    FakeUpstream,
    card,
    chunk,
    http,
    open_door,
    raw,
    read_chunks,
    read_head,
    read_response,
    until,
)

EVENT = b'data: {"x": "\xe4\xbd\xa0"}\n\n'


class Streaming:
    """A stream that the test drives: what is put into ``pieces`` is sent; None ends it, an exception cuts it."""

    def __init__(self, head: bytes = STREAM) -> None:
        self.pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.head = head

    async def __call__(self, _: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(self.head)
        while (piece := await self.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            writer.write(piece)


async def silent(*_: Any) -> None:
    await asyncio.sleep(60)


async def test_server_sent_events_pass_at_once_and_untouched() -> None:
    stream = Streaming()
    async with open_door(FakeUpstream(stream)) as door:
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"}, "accept-encoding: gzip")
        _, headers = await asyncio.wait_for(read_head(reader), 20)
        assert ("content-type", "text/event-stream; charset=utf-8") in headers
        assert ("x-accel-buffering", "no") in headers
        chunks = read_chunks(reader)
        # Pieces that are no events, no lines and no characters: a proxy that parses would hold them back.
        for piece in (
            b"data: {",
            b'"x": "\xe4\xbd',
            b"\xa0",
            b'"}\r',
            b"\n\r\n",
            b": comment\n\n",
            b"data: [DONE]\n\n",
        ):
            stream.pieces.put_nowait(chunk(piece))
            came = b""
            while len(came) < len(piece):  # the kernel may cut it further
                came += await asyncio.wait_for(anext(chunks), 20)
            assert came == piece
        stream.pieces.put_nowait(END)
        stream.pieces.put_nowait(None)
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(chunks), 20)
        assert door.outstanding == 0


async def test_an_upstream_is_asked_not_to_compress() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        await door.chat("accept-encoding: gzip, br")
    assert upstream.requests[0].all("accept-encoding") == []


@pytest.mark.parametrize("stream", [False, True])
async def test_twenty_clients_that_leave_before_the_first_byte(stream: bool) -> None:
    upstream = FakeUpstream(silent)
    async with open_door(upstream) as door:
        body = {"model": "m", "stream": stream}
        writers = [(await door.send("/v1/chat/completions", body))[1] for _ in range(20)]
        await until(lambda: len(upstream.requests) == 20)
        assert door.outstanding == 20
        for writer in writers:
            writer.transport.abort()
        await until(lambda: upstream.left == 20)
        await until(lambda: door.outstanding == 0)
        assert await door.metric("quintet_client_disconnects_total", model="m") == 20
        assert await door.metric("quintet_requests_total", code="499") == 20
        assert upstream.left == 20
        assert door.router.fleet.upstreams[0].breaker.closed


async def test_a_client_that_leaves_in_the_middle() -> None:
    stream = Streaming()
    upstream = FakeUpstream(stream)
    async with open_door(upstream) as door:
        reader, writer = await door.send("/v1/chat/completions", {"model": "m"})
        stream.pieces.put_nowait(chunk(EVENT))
        await read_head(reader)
        writer.transport.abort()
        await until(lambda: upstream.left == 1)
        await until(lambda: door.outstanding == 0)


async def test_a_client_that_leaves_while_it_sends() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        _, writer = await door.connect()
        writer.write(raw("/v1/chat/completions", b"{" * 100).replace(b"length: 100", b"length: 200000"))
        await until(lambda: bool(door.router._proxy._active))
        writer.transport.abort()
        await until(lambda: not door.router._proxy._active)
        assert not upstream.requests
        assert await door.metric("quintet_requests_total", code="499") == 1


async def flood(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
    """Send without end, as fast as it is taken; ``flood.sent`` counts."""
    writer.write(STREAM)
    while True:
        writer.write(chunk(EVENT * 500))
        await writer.drain()
        flood.sent += 500 * len(EVENT)  # type: ignore[attr-defined]
        await asyncio.sleep(0)


async def stalled_client(door: Door) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    client.connect(("127.0.0.1", door.port))
    client.sendall(raw("/v1/chat/completions", {"model": "m"}))
    return client


def passed(door: Door) -> int:
    """Bytes of the bodies that are with their clients, of answers that are under way."""
    return sum(exchange.bytes for exchange in door.router._proxy._active)


async def settled() -> int:
    """Wait until the flood stands still; how much went out."""
    before = -1
    async with asyncio.timeout(60):
        while flood.sent != before:  # type: ignore[attr-defined]
            before = flood.sent  # type: ignore[attr-defined]
            await asyncio.sleep(0.4)
    return before


async def test_a_client_that_does_not_read_stops_its_upstream() -> None:
    flood.sent = 0  # type: ignore[attr-defined]
    async with open_door(FakeUpstream(flood)) as door:
        client = await stalled_client(door)
        assert await settled() < 12 << 20  # sockets' buffers; a proxy that collects would take all
        assert door.outstanding == 1
        reader, writer = await asyncio.open_connection(sock=client)
        for _ in range(200):  # it goes on as if nothing had happened
            await reader.readexactly(100_000)
        assert flood.sent > 20_000_000  # type: ignore[attr-defined]
        writer.transport.abort()
        await until(lambda: door.outstanding == 0)


async def test_a_client_that_does_not_read_is_dropped_after_a_while() -> None:
    flood.sent = 0  # type: ignore[attr-defined]
    upstream = FakeUpstream(flood)
    async with open_door(upstream, stall_timeout=0.5) as door:
        client = await stalled_client(door)
        client.setblocking(False)
        await until(lambda: upstream.left == 1)
        await until(lambda: door.outstanding == 0)
        reader, _ = await asyncio.open_connection(sock=client)
        assert not (await asyncio.wait_for(reader.read(), 20)).endswith(END)  # cut off, not ended
        assert door.router.fleet.upstreams[0].breaker.closed


async def test_an_upstream_that_dies_between_two_events() -> None:
    stream = Streaming()
    async with open_door(FakeUpstream(stream)) as door:
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
        stream.pieces.put_nowait(chunk(EVENT[:-1]))
        stream.pieces.put_nowait(chunk(b"\n"))
        await until(lambda: passed(door) == len(EVENT))
        stream.pieces.put_nowait(ConnectionError())
        response = await asyncio.wait_for(read_response(reader), 20)
        assert response.body.startswith(EVENT)
        last = response.body[len(EVENT) :]
        assert last.startswith(b"data: ")
        assert last.endswith(b"\n\n")
        assert json.loads(last[6:])["error"]["code"] == "upstream_failed"
        assert b"[DONE]" not in last
        assert await door.metric("quintet_requests_total", code="502") == 1


async def test_an_upstream_that_dies_in_the_middle_of_a_line() -> None:
    stream = Streaming()
    async with open_door(FakeUpstream(stream)) as door:
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
        stream.pieces.put_nowait(chunk(EVENT + EVENT[:9]))
        await until(lambda: passed(door) == len(EVENT) + 9)
        stream.pieces.put_nowait(ConnectionError())
        response = await asyncio.wait_for(read_response(reader), 20)
        assert response.body == EVENT + EVENT[:9]
        assert not response.complete


async def test_an_upstream_that_dies_in_the_middle_of_a_picture() -> None:
    stream = Streaming(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\n")
    upstream = FakeUpstream(stream)
    async with open_door(upstream, FakeUpstream(cards=[card("other")])) as door:
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
        stream.pieces.put_nowait(b"x" * 500)
        await until(lambda: passed(door) == 500)
        stream.pieces.put_nowait(ConnectionError())
        response = await asyncio.wait_for(read_response(reader), 20)
        assert (response.body, response.complete) == (b"x" * 500, False)
        assert len(upstream.requests) == 1  # never again after the first byte


async def test_an_answer_that_ends_with_its_connection() -> None:
    async def old(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n" + b"x" * 100_000)
        await writer.drain()
        writer.write_eof()
        await asyncio.sleep(0.1)
        raise ConnectionError

    async with open_door(FakeUpstream(old)) as door:
        response = await door.chat()
    assert (response.status, response.body, response.complete) == (200, b"x" * 100_000, True)


async def test_interim_answers_are_swallowed() -> None:
    async def interim(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + http(200, b"{}"))

    async with open_door(FakeUpstream(interim)) as door:
        response = await door.chat()
    assert (response.status, response.body, response.all("link")) == (200, b"{}", [])


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nx: a\x01b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 400_000,
    ],
)
async def test_an_upstream_that_talks_garbage(garbage: bytes) -> None:
    async def talk(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        await asyncio.sleep(60)

    async with open_door(FakeUpstream(talk)) as door:
        response = await asyncio.wait_for(door.chat(), 20)
        assert (response.status, response.error["code"]) == (502, "upstream_failed")
        assert door.outstanding == 0


async def test_bytes_after_an_answer_never_reach_the_next_client() -> None:
    async def twice(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, b"mine") + http(200, b"not asked for"))

    async with open_door(FakeUpstream(twice)) as door:
        assert [(await door.chat()).body for _ in range(5)] == [b"mine"] * 5


async def test_an_answer_before_the_request_is_complete() -> None:
    async def refuse(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(413, b"{}"))
        await asyncio.sleep(1)

    upstream = FakeUpstream(refuse, early=True)
    async with open_door(upstream) as door:
        response = await door.ask("/v1/chat/completions", {"model": "m", "x": "y" * (20 << 20)})
        assert response.status == 413
        assert not door.router.fleet.upstreams[0].pool.idle


async def test_a_silent_upstream_and_a_pause_in_the_middle() -> None:
    stream = Streaming()
    upstream = FakeUpstream(stream)
    async with open_door(upstream, gap_timeout=0.3, first_byte_timeout={"": 0.3}) as door:
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
        stream.pieces.put_nowait(chunk(EVENT))
        response = await asyncio.wait_for(read_response(reader), 20)
        assert b"upstream_timeout" in response.body
        upstream.behave = silent
        response = await asyncio.wait_for(door.chat(), 20)
        assert (response.status, response.error["code"]) == (504, "upstream_timeout")
        await until(lambda: upstream.left == 2)
        assert door.outstanding == 0


async def test_a_slow_upstream_slows_an_upload() -> None:
    taken = 0

    async def slow(_: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await gate.wait()
        while taken < size:
            taken += len(await reader.read(1 << 20))
        writer.write(http(200, b"{}"))

    gate, upstream = asyncio.Event(), FakeUpstream(slow, [card("m", kind="image")], early=True)
    head = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
    body = head + b"x" * (60 << 20) + b"\r\n--b--\r\n"
    size = len(body)
    async with open_door(upstream) as door:
        kind = "content-type: multipart/form-data; boundary=b"
        reader, writer = await door.connect()
        writer.write(raw("/v1/images/edits", b"", kind).replace(b"length: 0", b"length: %d" % size))
        writer.transport.set_write_buffer_limits(0)
        writer.write(body)
        await asyncio.sleep(1)
        waiting = writer.transport.get_write_buffer_size()
        assert waiting > 30 << 20  # the router took only what sockets and one buffer hold
        gate.set()
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
        assert taken == size
