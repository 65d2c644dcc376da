"""What is sent again, and how often; upstreams that accept everything and answer nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from quintet_router.retries import RetryBudget
from quintet_router.upstream.breaker import Failure
from router.harness import END, STREAM, FakeUpstream, chunk, echo, http, open_door, read_response, until


async def die(*_: Any) -> None:
    raise ConnectionError


async def garbage(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01 this is no HTTP\r\n\r\n")


def answering(status: int) -> Any:
    async def behave(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(status, b"{}"))

    return behave


def test_the_budget_is_a_share_of_what_came_lately() -> None:
    budget = RetryBudget(0.2, 3, 10.0)
    budget.requests = 50
    for _ in range(10):
        assert budget.allows(100.0)
        budget.spend()
    assert not budget.allows(100.0)
    assert not budget.allows(109.0)
    assert budget.allows(112.0)  # what was spent is forgotten; so are the requests
    for _ in range(3):
        assert budget.allows(112.0)
        budget.spend()
    assert not budget.allows(112.0)
    assert budget.allows(1e6)


def test_requests_count_until_they_leave_the_window() -> None:
    budget = RetryBudget(0.5, 0, 10.0)
    budget.allows(0.0)
    budget.requests += 10
    budget.allows(6.0)
    budget.requests += 10
    for _ in range(10):
        assert budget.allows(8.0)
        budget.spend()
    assert not budget.allows(8.0)
    assert not budget.allows(12.0)


@pytest.mark.parametrize("fault", [die, garbage])
async def test_a_request_whose_answer_has_not_begun_is_saved_by_another_replica(fault: Any) -> None:
    """On a new connection, too, where no keep-alive race can be the reason."""
    a, b = FakeUpstream(fault), FakeUpstream()
    async with open_door(a, b, breaker_failures=1000) as door:
        assert [(await door.chat()).status for _ in range(30)] == [200] * 30
        assert len(a.requests) > 3
        assert await door.metric("quintet_router_retries_total") == len(a.requests)
        assert door.outstanding == 0


async def test_retries_end_with_the_budget() -> None:
    a, b = FakeUpstream(die), FakeUpstream()
    async with open_door(a, b, breaker_failures=1000, retry_share=0.0, retry_minimum=5) as door:
        statuses = [(await door.chat()).status for _ in range(60)]
        assert len(a.requests) > 6
        assert statuses.count(502) == len(a.requests) - 5


async def test_without_budget_not_now_is_passed_on_as_it_is() -> None:
    a, b = FakeUpstream(answering(503)), FakeUpstream()
    async with open_door(a, b, retry_share=0.0, retry_minimum=4, busy_seconds=0.0) as door:
        statuses = [(await door.chat()).status for _ in range(40)]
        assert statuses.count(503) == len(a.requests) - 4 > 0


async def test_a_refused_connection_costs_no_budget() -> None:
    upstreams = [FakeUpstream() for _ in range(4)]
    async with open_door(*upstreams, retry_share=0.0, retry_minimum=0, poll_seconds=60) as door:
        await asyncio.gather(*(upstream.stop() for upstream in upstreams[1:]))
        assert [(await door.chat()).status for _ in range(20)] == [200] * 20


async def test_502_from_a_replica_that_is_passed_over_counts_against_it() -> None:
    a, b = FakeUpstream(answering(502)), FakeUpstream()
    async with open_door(a, b, breaker_failures=3, busy_seconds=0.0) as door:
        assert [(await door.chat()).status for _ in range(30)] == [200] * 30
        assert len(a.requests) == 3
        assert await door.metric("quintet_router_breaker_state", state="open") == 1


async def test_a_replica_that_says_not_now_is_asked_last_for_a_moment() -> None:
    a, b = FakeUpstream(answering(503)), FakeUpstream()
    async with open_door(a, b, busy_seconds=60) as door:
        while not a.requests:
            await door.chat()
        assert [(await door.chat()).status for _ in range(20)] == [200] * 20
        assert len(a.requests) == 1
        a.behave = echo
        door.router.fleet.upstreams[0].busy_until = 0.0
        for _ in range(20):
            await door.chat()
        assert len(a.requests) > 1
        b.behave = a.behave = answering(503)
        assert (await door.chat()).status == 503


async def test_a_request_that_failed_once_goes_where_nothing_failed() -> None:
    upstreams = [FakeUpstream(die), FakeUpstream(die), FakeUpstream()]
    async with open_door(*upstreams, breaker_failures=1000) as door:
        for upstream in door.router.fleet.upstreams[:2]:
            upstream.breaker.failed(Failure.BROKEN, 0.0)
        assert [(await door.chat()).status for _ in range(30)] == [200] * 30
        assert await door.metric("quintet_router_retries_total") == sum(len(each.requests) for each in upstreams[:2])


async def test_nothing_is_sent_again_once_the_answer_has_begun() -> None:
    async def half(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(b"data: 1\n\n"))
        await writer.drain()
        raise ConnectionError

    a, b = FakeUpstream(half), FakeUpstream(half)
    async with open_door(a, b) as door:
        response = await door.chat()
        assert not response.complete or b"error" in response.body
        assert response.body.startswith(b"data: 1\n\n")
        assert len(a.requests + b.requests) == 1


async def test_a_replica_that_broke_off_is_found_well_again_while_others_answer() -> None:
    a, b = FakeUpstream(die), FakeUpstream()
    async with open_door(a, b, breaker_failures=2) as door:
        breaker = door.router.fleet.upstreams[0].breaker
        while breaker.closed:
            assert (await door.chat()).status == 200
        a.behave = echo
        polls = len(a.polls)
        await until(lambda: len(a.polls) > polls + 1)  # the catalog was made anew meanwhile
        breaker.until = 0.0
        for _ in range(40):
            assert (await door.chat()).status == 200
        assert breaker.closed
        assert len(a.requests) > 5


async def test_one_probe_only_goes_to_an_open_upstream() -> None:
    answers = asyncio.Event()

    async def slow(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        await answers.wait()
        writer.write(http(200, b"{}"))

    a, b = FakeUpstream(answering(500)), FakeUpstream()
    async with open_door(a, b, breaker_failures=1) as door:
        breaker = door.router.fleet.upstreams[0].breaker
        while breaker.closed:
            await door.chat()
        a.behave = slow
        breaker.until = 0.0
        before = len(a.requests)
        asked = [asyncio.create_task(door.chat()) for _ in range(24)]
        await until(lambda: len(b.requests) >= 23)
        assert len(a.requests) - before == 1
        assert breaker.state == "half_open"
        answers.set()
        assert [(await each).status for each in asked] == [200] * 24
        assert breaker.closed


async def test_a_frozen_replica_gets_nothing_new_and_what_waits_there_moves() -> None:
    a, b = FakeUpstream(), FakeUpstream()
    async with open_door(a, b, poll_timeout=0.5) as door:
        await asyncio.gather(*(door.chat() for _ in range(8)))
        a.frozen = True
        asked = [asyncio.create_task(door.chat()) for _ in range(16)]  # nobody knows yet; half of them hang
        statuses = [(await asyncio.wait_for(each, 20)).status for each in asked]
        assert statuses == [200] * 16
        upstream = door.router.fleet.upstreams[0]
        assert upstream.frozen
        assert upstream.outstanding == 0
        assert await door.metric("quintet_router_upstream_up") == 1
        before = len(a.requests)
        assert [(await door.chat()).status for _ in range(10)] == [200] * 10
        assert len(a.requests) == before
        a.frozen = False
        await until(lambda: not upstream.silent)
        for _ in range(20):
            await door.chat()
        assert len(a.requests) > before


async def test_what_waits_at_the_only_replica_goes_on_waiting() -> None:
    """A server that cannot answer polls while it works is slow, not gone."""
    a = FakeUpstream()
    async with open_door(a, poll_timeout=0.5) as door:
        upstream = door.router.fleet.upstreams[0]

        async def busy(*arguments: Any) -> None:
            await until(lambda: upstream.frozen)
            await asyncio.sleep(0.2)
            await echo(*arguments)

        a.behave = busy
        asked = asyncio.create_task(door.chat())
        await until(lambda: len(a.requests) == 1)
        a.frozen = True
        assert (await asked).status == 200


async def test_a_client_that_leaves_while_its_request_moves_stops_costing() -> None:
    answers = asyncio.Event()

    async def slow(*arguments: Any) -> None:
        await answers.wait()
        await echo(*arguments)

    a, b = FakeUpstream(), FakeUpstream(slow)
    async with open_door(a, b, poll_timeout=1.0) as door:
        a.frozen = True
        clients = [await door.send("/v1/chat/completions", {"model": "m"}) for _ in range(12)]
        await until(lambda: len(b.requests) == 12)
        for _, writer in clients[::2]:
            writer.transport.abort()
        await until(lambda: b.left == 6)
        answers.set()
        for reader, _ in clients[1::2]:
            assert (await asyncio.wait_for(read_response(reader), 20)).status == 200
        await until(lambda: door.outstanding == 0)
        assert not door.router._proxy._active


async def test_all_replicas_down_is_503_at_once() -> None:
    upstreams = [FakeUpstream() for _ in range(3)]
    async with open_door(*upstreams) as door:
        for upstream in upstreams:
            await upstream.stop()
        for _ in range(5):
            response = await asyncio.wait_for(door.chat(), 10)
            assert response.status == 503
            assert int(response.get("retry-after")) >= 1


async def test_a_streamed_answer_is_not_moved() -> None:
    async def slow(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(b"data: 1\n\n"))
        await asyncio.sleep(1.0)
        writer.write(chunk(b"data: 2\n\n") + END)

    a, b = FakeUpstream(slow), FakeUpstream(slow)
    async with open_door(a, b, poll_timeout=0.5) as door:
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
        await reader.readuntil(b"data: 1\n\n")
        a.frozen = b.frozen = True  # the polls hang, the stream goes on
        response = await asyncio.wait_for(reader.readuntil(b"data: 2\n\n"), 20)
        assert response.endswith(b"data: 2\n\n")
        assert len(a.requests + b.requests) == 1
