"""Requests that come while the only upstream of their model is being started again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from quintet_common.models_yml import UpstreamSpec
from quintet_router.upstream.breaker import Breaker, Failure
from router.harness import Door, FakeUpstream, card, open_door, until
from router.test_keys import bearer, key, locked_door

LONG = {"load_wait": 60.0, "restart_wait": 60.0}


def lengths(door: Door) -> dict[str, int]:
    return door.router._proxy._lobby.lengths


async def test_a_request_waits_for_a_service_that_died_and_comes_back() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, FakeUpstream(cards=[card("other")]), **LONG) as door:
        assert (await door.chat()).status == 200
        await upstream.stop()
        waiting = [asyncio.create_task(door.chat()) for _ in range(3)]
        await until(lambda: lengths(door) == {"m": 3})
        assert (await door.chat(model="other")).status == 200
        await upstream.start()
        assert [response.status for response in await asyncio.gather(*waiting)] == [200] * 3
        assert len(upstream.requests) == 4
        assert lengths(door) == {}
        assert door.outstanding == 0


async def test_it_waits_on_while_the_model_loads() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, **LONG) as door:
        await upstream.stop()
        waiting = asyncio.create_task(door.chat())
        await until(lambda: lengths(door) == {"m": 1})
        upstream.cards = [card("m", state="loading")]
        await upstream.start()
        await until(lambda: b"loading" in door.router.fleet.catalog.listing)
        assert not waiting.done()
        assert not upstream.requests
        upstream.cards = [card("m")]
        assert (await waiting).status == 200


async def test_what_stays_away_is_not_waited_for_again() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, load_wait=60.0, restart_wait=0.5) as door:
        await upstream.stop()
        response = await asyncio.wait_for(door.chat(), 20)
        assert (response.status, response.error["code"]) == (503, "upstream_unavailable")
        await until(lambda: door.router.fleet.upstreams[0].breaker.lost_at + 0.5 < time.monotonic())
        door.router._proxy._lobby.hold = None  # type: ignore[method-assign, assignment]
        assert (await door.chat()).status == 503


async def test_no_more_wait_than_may_and_who_leaves_is_forgotten() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, max_waiting=2, **LONG) as door:
        await upstream.stop()
        writers = [(await door.send("/v1/chat/completions", {"model": "m"}))[1] for _ in range(2)]
        await until(lambda: lengths(door) == {"m": 2})
        assert (await asyncio.wait_for(door.chat(), 20)).status == 503
        for writer in writers:
            writer.close()
        await until(lambda: not lengths(door))


async def test_a_request_that_was_sent_is_not_kept_for_the_next_life_of_its_upstream() -> None:
    """It may be what the upstream died of."""
    upstream = FakeUpstream()

    async def die(*_: Any) -> None:
        await upstream.stop()

    async with open_door(upstream, **LONG) as door:
        assert (await door.chat()).status == 200  # so that the upstream's connection is used a second time
        upstream.behave = die
        response = await asyncio.wait_for(door.chat(), 20)
        assert response.status in (502, 503)
        assert not lengths(door)


async def test_who_waits_for_a_model_that_a_reload_takes_away_is_told_at_once() -> None:
    upstream, other = FakeUpstream(), FakeUpstream(cards=[card("other")])
    async with open_door(upstream, other, **LONG) as door:
        await upstream.stop()
        waiting = asyncio.create_task(door.chat())
        await until(lambda: lengths(door) == {"m": 1})
        await door.router.fleet.apply([UpstreamSpec(url=other.url)])
        response = await asyncio.wait_for(waiting, 5)
        assert (response.status, response.error["code"]) == (404, "model_not_found")
        assert not lengths(door)


async def test_who_waits_for_a_model_that_a_reload_gives_to_another_upstream_goes_on_there() -> None:
    """Also where the one that is gone stays in the list, and where the name is another model's now."""
    upstream, other = FakeUpstream(), FakeUpstream(cards=[card("m"), card("new", aliases=["alias"])])
    upstream.cards = [card("m"), card("old", aliases=["alias"])]
    async with open_door(upstream, **LONG) as door:
        await upstream.stop()
        asked = [asyncio.create_task(door.chat(model=name)) for name in ("m", "alias")]
        await until(lambda: lengths(door) == {"m": 1, "old": 1})
        await other.start()
        await door.router.fleet.apply([UpstreamSpec(url=upstream.url), UpstreamSpec(url=other.url)])
        assert (await asyncio.wait_for(asked[0], 5)).status == 200
        assert not asked[1].done()  # the first server's alias is still the first server's
        await door.router.fleet.apply([UpstreamSpec(url=other.url)])
        assert (await asyncio.wait_for(asked[1], 5)).status == 200
        assert [request.json["model"] for request in other.requests] == ["m", "alias"]
        assert await door.metric("quintet_requests_total", model="new", code="200") == 1
    await other.stop()


async def test_an_upstream_whose_entry_changes_while_it_is_down_keeps_its_models() -> None:
    upstream = FakeUpstream(cards=[card("m"), card("n")])
    async with open_door(upstream) as door:
        fleet = door.router.fleet
        await upstream.stop()
        entries: list[tuple[dict[str, Any], set[str]]] = [
            ({"key": "k"}, {"m", "n"}),
            ({"models": ["m"]}, {"m"}),
            ({"prefix": "p/", "aliases": {"a": "n"}}, {"p/m", "p/n", "a"}),
        ]
        for entry, known in entries:
            await fleet.apply([UpstreamSpec(url=upstream.url, **entry)])
            for name in ("m", "n", "p/m", "p/n", "a"):
                assert (await door.chat(model=name)).status == (503 if name in known else 404)
        upstream.cards = [card("new")]
        await upstream.start()
        await until(lambda: set(fleet.catalog.names) == {"p/new"})


async def test_who_waits_for_a_promised_model_that_a_reload_takes_away_is_told_at_once() -> None:
    """Before the next poll."""
    upstream, silent = FakeUpstream(), FakeUpstream()
    silent.frozen = True
    async with open_door(upstream, silent, poll_seconds=60.0, poll_timeout=60.0, **LONG) as door:
        fleet = door.router.fleet
        fleet.expected = frozenset({"promised"})
        waiting = asyncio.create_task(door.chat(model="promised"))
        await until(lambda: lengths(door) == {"promised": 1})
        await fleet.apply([UpstreamSpec(url=each.url) for each in (upstream, silent)], frozenset({"else"}))
        assert (await asyncio.wait_for(waiting, 5)).status == 404
        assert fleet.expected == {"else"}


async def test_a_model_that_a_reload_promises_is_waited_for_until_its_service_has_read_the_file_too() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, poll_seconds=60.0, **LONG) as door:
        fleet = door.router.fleet
        assert (await door.chat(model="new")).status == 404
        await fleet.apply([UpstreamSpec(url=upstream.url)], frozenset({"m", "new"}))
        waiting = asyncio.create_task(door.chat(model="new"))
        await until(lambda: lengths(door) == {"new": 1})
        assert (await door.chat(model="newer")).status == 404
        upstream.cards = [card("m"), card("new")]
        assert (await asyncio.wait_for(waiting, 5)).status == 200


async def test_a_model_that_a_reload_promises_and_nobody_has_is_not_there_in_the_end() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, load_wait=60.0, reload_seconds=0.5) as door:
        await door.router.fleet.apply([UpstreamSpec(url=upstream.url)], frozenset({"new"}))
        assert (await asyncio.wait_for(door.chat(model="new"), 5)).status == 404


def test_an_upstream_is_lost_from_the_first_refusal_on() -> None:
    breaker = Breaker(5)
    breaker.failed(Failure.CONNECT, 100.0)
    breaker.failed(Failure.CONNECT, 105.0)
    assert breaker.lost_at == 100.0
    breaker.succeeded()
    breaker.failed(Failure.CONNECT, 110.0)
    assert breaker.lost_at == 110.0


async def test_what_the_router_answers_itself_tells_the_limits_and_does_not_count(tmp_path: Path) -> None:
    async with locked_door(tmp_path, [key("a", requests_per_minute=3), key("b")], FakeUpstream()) as door:
        for path, status in (("/v1/nothing", 404), ("/v1/models", 200), ("/v1/models/none", 404), ("/health", 200)):
            response = await door.get(path, bearer("a"))
            assert (response.status, response.all("x-ratelimit-remaining-requests")) == (status, ["3"])
            assert not (await door.get(path, bearer("b"))).all("x-ratelimit-limit-requests")
            assert not (await door.get(path)).all("x-ratelimit-limit-requests")
        assert (await door.chat(bearer("a"))).get("x-ratelimit-remaining-requests") == "2"
        assert (await door.get("/v1/nothing", bearer("a"))).get("x-ratelimit-remaining-requests") == "2"
