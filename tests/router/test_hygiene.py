"""Requests as hostile or careless clients send them, and headers that belong to one connection only."""

from __future__ import annotations

import asyncio
import gc
import re
from typing import Any

import pytest
from quintet_router.body import Body
from quintet_router.downstream import Downstream
from quintet_router.exchange import Exchange
from router.harness import FakeUpstream, card, http, open_door, raw, read_head, read_response, until


async def test_hop_by_hop_headers_stay_and_the_others_pass_as_often_as_they_came() -> None:
    async def answer(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        own = ["set-cookie: a=1", "set-cookie: b=2", "x-kept: yes", "x-hop: no", "keep-alive: timeout=5"]
        writer.write(http(200, b"{}", *own, "connection: x-hop, keep-alive", "server: theirs", "date: never"))

    upstream = FakeUpstream(answer)
    async with open_door(upstream) as door:
        response = await door.chat(
            "connection: keep-alive, x-mine", "x-mine: 1", "te: trailers", "trailer: x", "proxy-authorization: x",
            "keep-alive: 3", "x-twice: a", "x-twice: b",
            "authorization: Bearer sk-ours",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate: a=b", "expect: x",
        )  # fmt: skip
        request = upstream.requests[0]
    gone = ("connection", "x-mine", "te", "trailer", "proxy-authorization", "keep-alive", "authorization", "expect")
    for name in gone:
        assert request.all(name) == [], name
    assert request.all("x-twice") == ["a", "b"]
    assert request.all("traceparent") == ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
    assert request.all("tracestate") == ["a=b"]
    assert request.all("host") == [upstream.url.removeprefix("http://")]
    assert request.all("x-forwarded-host") == ["door"]
    assert response.all("set-cookie") == ["a=1", "b=2"]
    assert response.all("x-kept") == ["yes"]
    for name in ("x-hop", "keep-alive", "server"):
        assert response.all(name) == []
    assert response.all("date") != ["never"]
    assert len(response.all("content-length")) == 1


async def test_one_request_id_from_end_to_end() -> None:
    async def own(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, b"{}", "x-request-id: theirs"))

    upstream = FakeUpstream(own)
    async with open_door(upstream) as door:
        assert (await door.chat("x-request-id: abc-1")).all("x-request-id") == ["abc-1"]
        assert upstream.requests[0].all("x-request-id") == ["abc-1"]
        made = (await door.chat("x-request-id: has spaces")).all("x-request-id")
        assert upstream.requests[1].all("x-request-id") == made
        assert re.fullmatch("req_[0-9a-f]{24}", made[0])
        assert (await door.chat("x-request-id: abc-2", model="nope")).all("x-request-id") == ["abc-2"]
        assert len((await door.get("/v1/models")).all("x-request-id")) == 1


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: \x0bchunked\r\n",
        b"content-length : 5\r\n",
        b"content-length: +5\r\n",
        b"x: a\r\n content-length: 5\r\n",
        b"x: a\rtransfer-encoding: chunked\r\n",
        b"x: a\x00b\r\n",
    ],
)
async def test_ambiguous_requests_are_refused_and_nothing_is_smuggled(lines: bytes) -> None:
    upstream = FakeUpstream()
    smuggled = b'0\r\n\r\nPOST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n{"model":"m"}'
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n" + smuggled)
        response = await asyncio.wait_for(read_response(reader), 20)
        assert response.status == 400
        assert response.error["type"] == "invalid_request_error"
        assert await asyncio.wait_for(reader.read(), 20) == b""  # and the connection is closed
    assert not upstream.requests


@pytest.mark.parametrize("at_once", [True, False])
async def test_headers_without_end_are_refused(at_once: bool) -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, max_head=30 << 10) as door:
        reader, writer = await door.connect()
        writer.write(b"GET /v1/audio/voices HTTP/1.1\r\nhost: x\r\n")
        lines = b"".join(b"x-%d: %b\r\n" % (number, b"y" * 100) for number in range(300))
        for start in range(0, len(lines), len(lines) if at_once else 3000):
            writer.write(lines[start : start + (len(lines) if at_once else 3000)])
            await asyncio.sleep(0 if at_once else 0.005)
        if at_once:
            writer.write(b"\r\n")
        response = await asyncio.wait_for(read_response(reader), 20)
        assert response.status == 431
        assert "30 KiB" in response.error["message"]
    assert not upstream.requests


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000, 431),
        (b"POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 16777216\r\n\r\n", 404),
        (b"POST /nowhere HTTP/1.0\r\nhost: x\r\ncontent-length: 16777216\r\n\r\n", 404),
    ],
)
async def test_who_is_refused_while_it_still_sends_can_read_why(head: bytes, status: int) -> None:
    async with open_door(FakeUpstream()) as door:
        reader, writer = await door.connect()
        writer.write(head + b"y" * (16 << 20))  # more than is read before the refusal, and than the kernel holds
        response = await asyncio.wait_for(read_response(reader), 20)
        assert response.status == status
        assert await asyncio.wait_for(reader.read(), 20) == b""  # closed, and not reset
        await asyncio.wait_for(writer.drain(), 20)


async def test_a_request_whose_body_turns_out_to_be_no_http_ends_at_once() -> None:
    async with open_door(FakeUpstream(), body_timeout=600.0) as door:
        reader, writer = await door.connect()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}")
        await until(lambda: len(door.router._proxy._active) == 1)
        writer.write(b"no chunk")
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 400
        assert await asyncio.wait_for(reader.read(), 20) == b""
        await until(lambda: not door.router._proxy._active)


async def test_who_is_refused_and_goes_on_sending_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quintet_router.inbound._LAST_WORDS", 0.1)
    async with open_door(FakeUpstream()) as door:
        _, writer = await door.connect()
        writer.write(b"no HTTP\r\n\r\n")

        async def go_on() -> None:
            while True:
                writer.write(b"more")
                await writer.drain()
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(go_on(), 20)


async def test_a_client_that_sends_its_headers_too_slowly_is_dropped() -> None:
    async with open_door(FakeUpstream(), head_timeout=0.3) as door:
        reader, writer = await door.connect()
        writer.write(b"POST /v1/chat")
        assert await asyncio.wait_for(reader.read(), 20) == b""
        reader, writer = await door.connect()
        writer.write(raw("/v1/chat/completions", {"model": "m"}))
        assert (await read_response(reader)).status == 200
        await asyncio.sleep(0.5)  # idle between two requests is not slow
        writer.write(raw("/v1/chat/completions", {"model": "m"}))
        assert (await read_response(reader)).status == 200
        writer.write(b"POST /v1/ch")
        assert await asyncio.wait_for(reader.read(), 20) == b""


async def test_a_client_that_stops_in_the_middle_of_its_body() -> None:
    async with open_door(FakeUpstream(), body_timeout=0.3) as door:
        reader, writer = await door.connect()
        writer.write(raw("/v1/chat/completions", b"{").replace(b"length: 1", b"length: 9"))
        response = await asyncio.wait_for(read_response(reader), 20)
        assert (response.status, response.error["code"]) == (408, "request_timeout")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"not json", None),
        (b'{"model":"m"', None),
        (b'{"model":"m"} x', None),
        (b'{"model":"\xff"}', None),
        (b'["m"]', None),
        (b'"m"', None),
        (b"null", None),
        (b'{"model":7}', "model"),
        (b'{"model":["m"]}', "model"),
        (b"[" * 200_000, None),
        (b'{"model":"m","x":' + b"[" * 200_000, None),
    ],
)
async def test_bodies_that_are_no_requests(body: bytes, param: str | None) -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        response = await door.ask("/v1/chat/completions", body)
        assert (response.status, response.error["param"]) == (400, param)
        assert response.error["type"] == "invalid_request_error"
        assert (await door.chat()).status == 200
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=" + "b" * 300, b"x"),
        ("multipart/mixed; boundary=b", b"--b\r\n\r\n"),
        ("multipart/form-data; boundary=b", b"garbage"),
        ("multipart/form-data; boundary=b", b"--b\r\nbad header\r\n\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n' + b"m" * 9999,
        ),
    ],
)
async def test_forms_that_are_no_forms(kind: str, body: bytes) -> None:
    upstreams = FakeUpstream(cards=[card("a", kind="image")]), FakeUpstream(cards=[card("b", kind="image")])
    async with open_door(*upstreams) as door:
        response = await door.ask("/v1/images/edits", body, f"content-type: {kind}")
        assert (response.status, response.error["type"]) == (400, "invalid_request_error")
    assert not any(upstream.requests for upstream in upstreams)


@pytest.mark.parametrize("framing", ["length", "chunks", "form", "streamed form"])
async def test_a_body_over_the_limit(framing: str) -> None:
    upstreams = [FakeUpstream(cards=[card("a", kind="image")]), FakeUpstream(cards=[card("b", kind="image")])]
    body, headers = b'{"model":"a","x":"' + b"y" * (5 << 20) + b'"}', []
    if "form" in framing:
        head = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
        body, headers = head + b"y" * (5 << 20) + b"\r\n--b--\r\n", ["content-type: multipart/form-data; boundary=b"]
    if framing != "length":
        body = b"".join(b"%x\r\n%b\r\n" % (1 << 20, body[:1] * (1 << 20)) for _ in range(5)) if not headers else body
        headers.append("transfer-encoding: chunked")
        if "form" in framing:
            body = b"".join(
                b"%x\r\n%b\r\n" % (len(p), p) for p in (body[i : i + 65000] for i in range(0, len(body), 65000))
            )
        body += b"0\r\n\r\n"
    async with open_door(*upstreams[: 1 if framing == "streamed form" else 2], max_body=2 << 20) as door:
        reader, writer = await door.send("/v1/images/edits", body, *headers)
        response = await asyncio.wait_for(read_response(reader), 20)
        assert (response.status, response.error["code"]) == (413, "body_too_large")
        assert "2 MiB" in response.error["message"]
        writer.write(raw("/v1/images/generations", {"model": "a"}))  # the rest of the body is not the next request
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
        assert door.outstanding == 0


async def test_a_compressed_body_is_refused_by_name() -> None:
    async with open_door(FakeUpstream()) as door:
        response = await door.ask("/v1/chat/completions", b"\x1f\x8b", "content-encoding: gzip")
    assert (response.status, response.error["code"]) == (415, "unsupported_content_encoding")


async def test_a_wrong_method_says_which_is_right() -> None:
    async with open_door(FakeUpstream()) as door:
        for method, path, allowed in (
            ("GET", "/v1/chat/completions", "POST"),
            ("DELETE", "/v1/embeddings", "POST"),
            ("OPTIONS", "/v1/chat/completions", "POST"),
            ("POST", "/v1/audio/voices", "GET, HEAD"),
            ("POST", "/v1/models", "GET"),
        ):
            response = await door.ask(path, {} if method == "POST" else None, method=method)
            assert (response.status, response.get("allow")) == (405, allowed)
            assert response.error["type"] == "invalid_request_error"


async def test_a_missing_model_where_there_is_no_default() -> None:
    async with open_door(FakeUpstream()) as door:
        response = await door.ask("/v1/moderations", {"input": "x"})
        assert (response.status, response.error["code"]) == (404, "model_not_found")
        assert "Nothing here serves /moderations." in response.error["message"]
        response = await door.ask("/v1/classify", {"input": "x"})
        assert (response.status, response.error["param"]) == (400, "model")
        response = await door.ask("/v1/audio/speech", {"input": "x"})
        assert (response.status, response.error["code"]) == (404, "model_not_found")


async def test_a_fault_of_our_own_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    async with open_door(FakeUpstream()) as door:
        monkeypatch.setattr("quintet_router.balance.choose", fail)
        response = await door.chat()
        assert (response.status, response.error["type"]) == (500, "server_error")
        assert b"secret" not in response.body
        assert (await door.get("/health")).status == 200
        assert not door.router._proxy._active


async def test_an_unknown_model_tells_nothing_of_the_others() -> None:
    async with open_door(FakeUpstream(cards=[card("secret")])) as door:
        response = await door.chat(model="nope")
    assert (response.status, response.error["code"], response.error["param"]) == (404, "model_not_found", "model")
    assert b"secret" not in response.body
    assert b"127.0.0.1" not in response.body


async def test_two_requests_on_one_connection_at_once() -> None:
    async with open_door(FakeUpstream()) as door:
        reader, writer = await door.connect()
        writer.write(raw("/v1/chat/completions", {"model": "m"}) + raw("/chat/completions", {"model": "m", "x": 1}))
        first, second = await read_response(reader), await read_response(reader)
        assert (first.json["path"], second.json["path"]) == ("/v1/chat/completions", "/chat/completions")


async def test_expect_continue_is_answered_here() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        head, body = raw("/v1/chat/completions", {"model": "m"}, "expect: 100-continue").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert (await asyncio.wait_for(read_head(reader), 20))[0] == "HTTP/1.1 100 Continue"
        writer.write(body)
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
    assert upstream.requests[0].all("expect") == []


async def test_nothing_of_a_request_is_kept_after_its_answer() -> None:
    """Without waiting for the garbage collector, which runs seldom in the router."""
    gc.collect()
    gc.disable()
    try:
        async with open_door(FakeUpstream(), watch_seconds=0.05) as door:
            reader, writer = await door.connect()
            writer.write(raw("/v1/chat/completions", b'{"model": "m", "x": "%b"}' % (b"x" * 3_000_000)))
            assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
            await until(lambda: not any(isinstance(each, Body | Exchange | Downstream) for each in gc.get_objects()))
    finally:
        gc.enable()
