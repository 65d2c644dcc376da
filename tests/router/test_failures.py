"""Upstreams that go, come back, or were never there; and what is tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from quintet_common.models_yml import UpstreamSpec
from quintet_router.configuration import Reloads, Sources
from router.harness import FakeUpstream, card, echo, http, open_door, raw, read_response, until

DEAD = "http://127.0.0.1:9"


def answering(status: int, *headers: str) -> Any:
    async def behave(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(status, b'{"mine": 1}', *headers))

    return behave


async def test_a_known_model_whose_upstream_is_down_is_503_and_comes_back() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, FakeUpstream(cards=[card("other")])) as door:
        await door.chat()
        await upstream.stop()
        response = await door.chat()
        assert (response.status, response.error["code"]) == (503, "upstream_unavailable")
        assert 1 <= int(response.get("retry-after")) <= 5
        await until(lambda: b"unreachable" in door.router.fleet.catalog.listing)
        assert {m["id"]: m["state"] for m in (await door.get("/v1/models")).json["data"]}["m"] == "unreachable"
        assert (await door.chat()).status == 503
        assert (await door.chat(model="nobody")).status == 404
        assert (await door.get("/ready")).status == 200
        await upstream.start()
        await until(lambda: b"unreachable" not in door.router.fleet.catalog.listing)
        assert (await door.chat()).status == 200


async def test_a_dead_upstream_costs_the_others_nothing() -> None:
    dead = UpstreamSpec(url="http://127.0.0.1:9")
    async with open_door(dead, FakeUpstream()) as door:
        assert (await asyncio.wait_for(door.chat(), 10)).status == 200


async def test_before_all_have_answered_an_unknown_model_may_still_come() -> None:
    async with open_door(UpstreamSpec(url="http://127.0.0.1:9"), start_seconds=60) as door:
        response = await door.chat()
        assert (response.status, response.get("retry-after")) == (503, "2")
        assert (await door.get("/v1/models/m")).status == 503
        assert (await door.get("/ready")).status == 503
        assert (await door.get("/health")).status == 200


async def test_only_one_that_was_up_is_down(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "quintet.router")
    upstream = FakeUpstream()
    await upstream.start()
    await upstream.stop()

    def said(level: str) -> str:
        return "\n".join(each.getMessage() for each in caplog.records if each.levelname == level)

    async with open_door(UpstreamSpec(url=upstream.url)):
        await until(lambda: "is not up yet" in said("INFO"))
        assert "is down" not in caplog.text
        await upstream.start()
        await until(lambda: "is up" in said("INFO"))
        await upstream.stop()
        await until(lambda: "is down" in said("WARNING"))


async def test_a_model_that_the_file_promises_is_not_unknown() -> None:
    late = FakeUpstream(cards=[])
    await late.start()
    await late.stop()
    async with open_door(UpstreamSpec(url=late.url)) as door:
        door.router.fleet.expected = frozenset({"m"})
        assert (await door.chat()).status == 503
        assert (await door.chat(model="n")).status == 404
        await late.start()
        await until(lambda: door.router.fleet.upstreams[0].cards is not None)
        assert (await door.chat()).status == 404  # all have answered, and nobody has it
    await late.stop()


async def test_a_model_of_a_kind_that_is_left_out_is_not_waited_for(tmp_path: Path) -> None:
    """Though an upstream that never answered might have it."""
    file = tmp_path / "models.yml"
    text = (
        "models:\n  - {id: m, kind: chat, path: p}\n  - {id: voice, kind: tts, path: 'embedded:hibari', aliases: [v]}\n"
    )
    file.write_text(text)
    sources = Sources([DEAD], str(file), None, kinds=["chat"])
    async with open_door(UpstreamSpec(url=DEAD), load_wait=60.0, start_seconds=60.0) as door:
        await Reloads(sources, door.router.fleet, 1.0).reload()
        for name in ("voice", "v"):
            response = await asyncio.wait_for(door.chat(model=name), 10)
            assert (response.status, response.error["code"]) == (404, "model_not_found")
            says = f"The model {name!r} is in models.yml, but models of kind 'tts' are not served here."
            assert response.error["message"] == says
            assert (await door.get(f"/v1/models/{name}")).error["message"] == says
        assert (await door.get("/v1/models/m")).status == 503


async def test_a_refused_connection_goes_to_the_other_replica() -> None:
    a, b = FakeUpstream(), FakeUpstream()
    async with open_door(a, b, poll_seconds=60) as door:
        await a.stop()
        assert [(await door.chat()).status for _ in range(20)] == [200] * 20
        assert len(b.requests) == 20
        assert await door.metric("quintet_router_breaker_state", state="open") == 1


async def test_the_keep_alive_race_is_not_seen() -> None:
    """The upstream closes an idle connection at the moment when a request is on its way to it."""
    upstream = FakeUpstream()
    async with open_door(upstream) as door:

        async def close_instead(*_: Any) -> None:
            upstream.behave = echo
            raise ConnectionError

        await door.chat()
        assert len(door.router.fleet.upstreams[0].pool.idle) == 1
        upstream.behave = close_instead
        assert (await door.chat()).status == 200
        assert len(upstream.requests) == 3
        assert await door.metric("quintet_router_retries_total") == 1
        assert door.router.fleet.upstreams[0].breaker.closed


async def test_a_request_that_kills_its_upstream_is_sent_twice_at_most() -> None:
    async def die(*_: Any) -> None:
        raise ConnectionError

    a, b = FakeUpstream(), FakeUpstream()
    async with open_door(a, b) as door:
        for _ in range(10):
            await door.chat()
        a.behave = b.behave = die
        before = len(a.requests + b.requests)
        response = await door.chat()
        assert (response.status, response.error["code"]) == (502, "upstream_failed")
        assert len(a.requests + b.requests) - before <= 2


async def test_on_a_new_connection_nothing_is_sent_again() -> None:
    async def die(*_: Any) -> None:
        raise ConnectionError

    upstream = FakeUpstream(die)
    async with open_door(upstream) as door:
        assert (await door.chat()).status == 502
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_a_replica_that_cannot_now_is_passed_over(status: int) -> None:
    a, b = FakeUpstream(answering(status, "retry-after: 7")), FakeUpstream()
    async with open_door(a, b) as door:
        assert [(await door.chat()).status for _ in range(12)] == [200] * 12
        b.behave = a.behave
        response = await door.chat()
        assert (response.status, response.body, response.get("retry-after")) == (status, b'{"mine": 1}', "7")


async def test_the_only_upstreams_errors_pass_as_they_are() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, breaker_failures=2) as door:
        for status in (400, 404, 422, 429, 500, 502, 503):
            upstream.behave = answering(status)
            for _ in range(3):
                response = await door.chat()
                assert (response.status, response.body) == (status, b'{"mine": 1}')
        upstream.behave = echo
        assert (await door.chat()).status == 200


async def test_refusals_never_open_the_circuit() -> None:
    a = FakeUpstream()
    async with open_door(a, breaker_failures=2) as door:
        breaker = door.router.fleet.upstreams[0].breaker
        for status in (400, 401, 404, 422, 429, 503):
            a.behave = answering(status)
            for _ in range(4):
                await door.chat()
            assert breaker.closed
        a.behave = answering(500)
        for _ in range(2):
            await door.chat()
        assert not breaker.closed


async def test_a_replica_that_answers_errors_gets_no_more_than_a_probe() -> None:
    a, b = FakeUpstream(answering(500)), FakeUpstream()
    async with open_door(a, b, breaker_failures=3) as door:
        statuses = [(await door.chat()).status for _ in range(60)]
        assert statuses.count(500) == 3
        a.behave = echo
        door.router.fleet.upstreams[0].breaker.until = 0.0
        assert [(await door.chat()).status for _ in range(30)] == [200] * 30
        assert door.router.fleet.upstreams[0].breaker.closed


async def test_counters_are_released_once_whatever_happens() -> None:
    """A little chaos: every behaviour, clients that leave at any moment; in the end nothing is in flight."""

    async def die(*_: Any) -> None:
        raise ConnectionError

    async def slow(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(http(200, b"{}"))

    upstreams = [FakeUpstream(each) for each in (echo, die, slow, answering(503), answering(500))]
    async with open_door(*upstreams, first_byte_timeout={"": 0.2}) as door:

        async def client(number: int) -> None:
            for turn in range(6):
                reader, writer = await door.send("/v1/chat/completions", {"model": "m"})
                if (number + turn) % 3 == 0:
                    await asyncio.sleep((number % 7) / 100)
                    writer.transport.abort()
                else:
                    await asyncio.wait_for(read_response(reader), 20)

        clients = [asyncio.create_task(client(number)) for number in range(30)]
        await asyncio.sleep(0.15)
        await upstreams[0].stop()
        await asyncio.gather(*clients)
        await until(lambda: door.outstanding == 0)
        assert [upstream.outstanding for upstream in door.router.fleet.upstreams] == [0] * 5
        assert await door.metric("quintet_requests_total", endpoint="/chat/completions") == 180
        assert not door.router._proxy._active


async def test_a_rolling_restart_loses_nothing() -> None:
    a, b = FakeUpstream(), FakeUpstream()
    async with open_door(a, b) as door:
        failed: list[int] = []
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                response = await door.chat()
                if response.status != 200:
                    failed.append(response.status)

        clients = [asyncio.create_task(client()) for _ in range(4)]
        for upstream in (a, b):
            await asyncio.sleep(0.2)
            for writer in list(upstream.writers):  # a server that ends closes what is idle, then its door
                writer.close()
            await upstream.stop()
            await asyncio.sleep(0.2)
            await upstream.start()
            await asyncio.sleep(0.4)
        stop.set()
        await asyncio.gather(*clients)
        assert not failed
        assert min(len(a.requests), len(b.requests)) > 10


async def test_a_new_set_of_upstreams_is_taken_over_whole() -> None:
    a, b = FakeUpstream(cards=[card("a")]), FakeUpstream(cards=[card("b")])
    await b.start()
    async with open_door(a) as door:
        with pytest.raises(ValueError, match="ftp"):
            await door.router.fleet.apply([UpstreamSpec(url=b.url), UpstreamSpec(url="ftp://x")])
        assert (await door.chat(model="a")).status == 200
        await door.router.fleet.apply([UpstreamSpec(url=b.url)])
        await until(lambda: door.router.fleet.catalog.find("b") is not None)
        assert (await door.chat(model="b")).status == 200
        assert (await door.chat(model="a")).status == 404
    await b.stop()


def slow_form(port_of: FakeUpstream, length: int) -> bytes:
    """The beginning of a form of ``length`` bytes whose model stands first."""
    start = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % port_of.cards[0]["id"].encode()
    start += b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
    head = raw("/v1/images/edits", b"", "content-type: multipart/form-data; boundary=b")
    return head.replace(b"length: 0", b"length: %d" % length) + start


async def test_an_upload_does_not_meet_a_connection_that_is_just_closing() -> None:
    """What streams through cannot be sent again."""
    upstream = FakeUpstream(cards=[card("m", kind="image")])
    async with open_door(upstream) as door:
        await door.ask("/v1/images/generations", {"model": "m"})
        assert len(door.router.fleet.upstreams[0].pool.idle) == 1
        for writer in upstream.writers:
            writer.transport.pause_reading()  # the next request on an old connection would hang
        reader, writer = await door.connect()
        start = slow_form(upstream, 5000)
        body_size = len(start.split(b"\r\n\r\n", 1)[1])
        writer.write(start)
        await asyncio.sleep(0.05)
        writer.write(b"x" * (5000 - body_size - 9) + b"\r\n--b--\r\n")
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200


async def test_a_connection_with_half_an_upload_is_not_used_again() -> None:
    async def at_once(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, b"{}"))
        await asyncio.sleep(60)

    upstream = FakeUpstream(at_once, [card("m", kind="image")], early=True)
    async with open_door(upstream) as door:
        reader, writer = await door.connect()
        writer.write(slow_form(upstream, 5000))
        assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
        assert not door.router.fleet.upstreams[0].pool.idle


async def test_not_now_does_not_make_a_failing_upstream_well() -> None:
    a = FakeUpstream()
    async with open_door(a, breaker_failures=2) as door:
        for status in (500, 503, 500):
            a.behave = answering(status)
            await door.chat()
        assert not door.router.fleet.upstreams[0].breaker.closed
