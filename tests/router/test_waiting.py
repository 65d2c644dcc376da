"""Requests that wait: for their turn at a full upstream, or for a model that is on its way."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from quintet_common.models_yml import UpstreamSpec
from router.harness import END, STREAM, Door, FakeUpstream, Request, card, chunk, http, open_door, read_response, until


class Slow:
    """An upstream that answers when it is told to, in any order."""

    def __init__(self, cards: list[dict[str, Any]] | None = None) -> None:
        self.begun: list[str] = []
        self._go: dict[str, asyncio.Event] = {}
        self.most = self.now = 0
        self.upstream = FakeUpstream(self._behave, cards)

    async def _behave(self, request: Request, _: Any, writer: asyncio.StreamWriter) -> None:
        name = request.json["n"]
        self.begun.append(name)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self._go.setdefault(name, asyncio.Event()).wait()
        finally:
            self.now -= 1
        writer.write(http(200, b'{"n":"%b"}' % name.encode()))

    def finish(self, *names: str) -> None:
        for name in names:
            self._go.setdefault(name, asyncio.Event()).set()


async def send(door: Door, name: str, model: str = "m") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request that is surely there before the next one."""
    active = door.router._proxy._active
    known = set(active)
    reader, writer = await door.send("/v1/chat/completions", {"model": model, "n": name})

    def there() -> bool:
        refused = bool(reader._buffer)  # type: ignore[attr-defined]
        return refused or any(job is not None for exchange, job in active.items() if exchange not in known)

    await until(there)
    return reader, writer


async def answer(sent: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> Any:
    return await asyncio.wait_for(read_response(sent[0]), 20)


async def test_first_come_first_served_and_never_more_than_allowed() -> None:
    slow = Slow()
    async with open_door(slow.upstream, max_concurrent=2) as door:
        sent = {name: await send(door, name) for name in "abcdef"}
        assert slow.begun == ["a", "b"]
        assert await door.metric("quintet_router_waiting", model="m") == 4
        for done, expected in (("b", "c"), ("a", "d"), ("d", "e"), ("c", "f")):
            slow.finish(done)
            await until(lambda expected=expected: slow.begun[-1] == expected)  # type: ignore[misc]
        late = await send(door, "g")  # must not take a place that somebody waited for
        slow.finish(*"efg")
        assert [(await answer(sent[name])).json["n"] for name in "abcdef"] == list("abcdef")
        assert (await answer(late)).status == 200
        assert slow.most == 2
        assert door.outstanding == 0
        assert await door.metric("quintet_router_waiting") == 0
        assert await door.metric("quintet_request_queue_time_seconds_count", model="m") == 5


async def test_a_place_goes_to_the_one_that_waits_longest_for_it() -> None:
    slow = Slow([card("m"), card("k")])
    async with open_door(slow.upstream, max_concurrent=1) as door:
        sent = [await send(door, "a"), await send(door, "b", "k"), await send(door, "c"), await send(door, "d", "k")]
        for name in "abc":
            slow.finish(name)
            await until(lambda name=name: slow.begun[-1] > name)  # type: ignore[misc]
        slow.finish("d")
        for each in sent:
            assert (await answer(each)).status == 200
        assert slow.begun == ["a", "b", "c", "d"]


async def test_who_waits_for_a_turn_goes_to_a_replica_that_comes_or_recovers() -> None:
    first, second = Slow(), Slow()
    async with open_door(first.upstream, max_concurrent=1, queue_wait=60.0) as door:
        sent = [await send(door, name) for name in "abcd"]
        await second.upstream.start()
        specs = [UpstreamSpec(url=each.upstream.url) for each in (first, second)]
        await door.router.fleet.apply(specs)
        await until(lambda: second.begun == ["b"])  # who has waited longest
        assert await door.metric("quintet_router_waiting", model="m") == 2
        second.finish(*"bcd")
        assert [(await answer(each)).json["n"] for each in sent[1:]] == list("bcd")
        await second.upstream.stop()
        await until(lambda: not door.router.fleet.upstreams[1].breaker.closed)
        late = await send(door, "e")
        assert first.begun == ["a"]
        await second.upstream.start()
        second.finish("e")
        assert (await answer(late)).json["n"] == "e"
        first.finish("a")
        assert (await answer(sent[0])).status == 200
        assert door.outstanding == 0
        assert first.most == second.most == 1
        await second.upstream.stop()


async def test_who_waits_for_a_turn_at_an_upstream_that_a_reload_takes_away_gets_one_elsewhere_or_is_told() -> None:
    first, second, other = Slow(), Slow(), FakeUpstream(cards=[card("other")])
    async with open_door(first.upstream, other, max_concurrent=1, queue_wait=60.0) as door:
        fleet = door.router.fleet
        sent = [await send(door, name) for name in "abc"]
        await second.upstream.start()
        await fleet.apply([UpstreamSpec(url=second.upstream.url), UpstreamSpec(url=other.url)])
        await until(lambda: second.begun == ["b"])
        assert await door.metric("quintet_router_waiting", model="m") == 1
        await fleet.apply([UpstreamSpec(url=other.url)])
        told = await answer(sent[2])
        assert (told.status, told.error["code"]) == (404, "model_not_found")
        first.finish("a")
        second.finish("b")
        assert [(await answer(each)).json["n"] for each in sent[:2]] == ["a", "b"]
        assert await door.metric("quintet_router_waiting") == 0
        await until(lambda: not fleet.leaving)
        await second.upstream.stop()


async def test_a_full_queue_is_429_and_a_long_wait_503() -> None:
    slow = Slow()
    async with open_door(slow.upstream, max_concurrent=1, max_waiting=2, queue_wait=0.4) as door:
        first, second, third = [await send(door, name) for name in "abc"]
        refused = await door.chat(n="d")
        assert (refused.status, refused.error["code"], refused.get("retry-after")) == (429, "queue_full", "1")
        for each in (second, third):
            response = await answer(each)
            assert (response.status, response.get("retry-after")) == (503, "1")
        assert slow.begun == ["a"]
        slow.finish("a", "e")
        assert (await answer(first)).status == 200
        assert (await door.chat(n="e")).status == 200
        assert door.outstanding == 0


async def test_who_leaves_the_queue_is_forgotten_at_once() -> None:
    slow = Slow()
    async with open_door(slow.upstream, max_concurrent=1, max_waiting=2) as door:
        first, second, third = [await send(door, name) for name in "abc"]
        second[1].close()
        await until(lambda: door.router._proxy._queue.lengths == {"m": 1})
        fourth = await send(door, "d")
        slow.finish("a", "c", "d")
        assert [(await answer(each)).json["n"] for each in (first, third, fourth)] == ["a", "c", "d"]
        assert slow.begun == ["a", "c", "d"]
        assert await door.metric("quintet_requests_total", code="499") == 1
        assert await door.metric("quintet_client_disconnects_total") == 1


async def test_places_are_given_back_exactly_once_whatever_happens() -> None:
    """Clients that leave at any moment, upstreams that break off: afterwards all places are free, and no more than
    there were."""

    async def moody(request: Request, _: Any, writer: asyncio.StreamWriter) -> None:
        mood = request.json["n"] % 4
        await asyncio.sleep(0.01)
        if mood == 0:
            writer.transport.abort()
        elif mood == 1:
            writer.write(STREAM + chunk(b"data: 1\n\n"))
            await asyncio.sleep(0.02)
            writer.write(chunk(b"data: [DONE]\n\n") + END)
        else:
            writer.write(http(503 if mood == 2 else 200, b"{}"))

    upstreams = [FakeUpstream(moody), FakeUpstream(moody)]
    async with open_door(*upstreams, max_concurrent=3, max_waiting=50, queue_wait=0.3, breaker_failures=1000) as door:

        async def visit(number: int) -> None:
            reader, writer = await door.send("/v1/chat/completions", {"model": "m", "n": number})
            if number % 3 == 0:
                await asyncio.sleep(number % 7 / 100)
            else:
                await asyncio.wait_for(read_response(reader), 20)
            writer.transport.abort()

        for _ in range(3):
            await asyncio.gather(*(visit(number) for number in range(60)))
        await until(lambda: not door.router._proxy._active)
        queue = door.router._proxy._queue
        assert (door.outstanding, queue.lengths, queue._waiting) == (0, {}, {})


async def test_no_limit_no_queue() -> None:
    slow = Slow()
    async with open_door(slow.upstream) as door:
        sent = [await send(door, name) for name in "abcdefgh"]
        assert slow.now == 8
        slow.finish(*"abcdefgh")
        for each in sent:
            assert (await answer(each)).status == 200


async def test_a_full_replica_is_left_for_a_free_one() -> None:
    a, b = Slow(), Slow()
    async with open_door(a.upstream, b.upstream, max_concurrent=2) as door:
        sent = [await send(door, name) for name in "abcde"]
        assert (a.now, b.now) == (2, 2)
        for each in (a, b):
            each.finish(*"abcde")
        for each in sent:
            assert (await answer(each)).status == 200


async def test_a_request_waits_for_a_model_that_is_loading() -> None:
    upstream = FakeUpstream(cards=[card("m", state="loading", progress=0.4, note="reading weights")])
    async with open_door(upstream, load_wait=10) as door:
        waiting = asyncio.create_task(door.chat())
        await until(lambda: door.router._proxy._lobby.lengths == {"m": 1})
        assert await door.metric("quintet_router_waiting", model="m") == 1
        assert not upstream.requests
        upstream.cards = [card("m")]
        assert (await asyncio.wait_for(waiting, 20)).status == 200
        assert door.router._proxy._lobby.lengths == {}


async def test_after_that_it_is_told_how_far_the_model_is() -> None:
    upstream = FakeUpstream(cards=[card("m", state="loading", progress=0.4, note="reading weights")])
    async with open_door(upstream, load_wait=0.3) as door:
        began = time.monotonic()
        response = await door.chat()
        assert time.monotonic() - began >= 0.3
        assert (response.status, response.error["code"], response.get("retry-after")) == (503, "model_loading", "2")
        assert "(40 %, reading weights)" in response.error["message"]
        assert not upstream.requests
        upstream.cards = [card("m", state="failed")]
        await until(lambda: not door.router.fleet.catalog.find("m").loading)  # type: ignore[union-attr]
        await door.chat()  # is for the service to answer
        assert len(upstream.requests) == 1


async def test_a_request_waits_for_a_service_that_comes_up() -> None:
    """As after a scale from zero: the model is promised by models.yml, and nothing listens yet."""
    upstream, other = FakeUpstream(cards=[card("late")]), FakeUpstream()
    await upstream.start()
    await upstream.stop()
    async with open_door(other, UpstreamSpec(url=upstream.url), load_wait=10) as door:
        door.router.fleet.expected = frozenset({"late"})
        waiting = asyncio.create_task(door.chat(model="late"))
        await until(lambda: door.router._proxy._lobby.lengths == {"late": 1})
        assert (await door.chat(model="never")).status == 404
        assert (await door.chat()).status == 200
        await upstream.start()
        assert (await asyncio.wait_for(waiting, 20)).status == 200
    await upstream.stop()


async def test_nobody_waits_for_a_name_that_nobody_promised() -> None:
    """Early, with an upstream that refuses: it may have the model, so 503, but there is no sign that it comes."""
    dead = UpstreamSpec(url="http://127.0.0.1:9")
    async with open_door(FakeUpstream(), dead, load_wait=60, start_seconds=60) as door:
        response = await asyncio.wait_for(door.chat(model="gpt-4o"), 20)
        assert (response.status, response.error["code"]) == (503, "upstream_unavailable")
        assert "gpt-4o" in response.error["message"]
        response = await asyncio.wait_for(door.ask("/v1/embeddings", {"input": "x"}), 20)
        assert response.status == 503
        door.router.fleet.expected = frozenset({"m", "late"})
        assert (await asyncio.wait_for(door.chat(model="gpt-4o"), 20)).status == 503
        for body in ({"input": "x", "model": "late"}, {"input": "x"}):
            _, writer = await door.send("/v1/embeddings", body)
            await until(lambda: bool(door.router._proxy._lobby.lengths))
            writer.close()
            await until(lambda: not door.router._proxy._lobby.lengths)


async def test_who_leaves_while_a_model_loads_is_forgotten() -> None:
    upstream = FakeUpstream(cards=[card("m", state="loading")])
    async with open_door(upstream, load_wait=60) as door:
        _, writer = await door.send("/v1/chat/completions", {"model": "m"})
        await until(lambda: bool(door.router._proxy._lobby.lengths))
        writer.close()
        await until(lambda: not door.router._proxy._active)
        assert door.router._proxy._lobby.lengths == {}
        assert await door.metric("quintet_requests_total", code="499", model="") == 1


async def test_waiting_for_models_can_be_switched_off() -> None:
    upstream = FakeUpstream(cards=[card("m", state="loading")])
    async with open_door(upstream, load_wait=0) as door:
        await door.chat()
        assert len(upstream.requests) == 1  # which says itself how far it is


async def test_the_first_request_after_a_restart_waits_too() -> None:
    """The last poll said ready; the service that has come up in place of the dead one says that it loads."""
    service = FakeUpstream()
    told = asyncio.Event()

    async def restarted(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        if service.cards[0]["state"] == "ready" and told.is_set():
            writer.write(http(200, b"{}"))
            return
        service.cards = [card("m", state="loading")]
        told.set()
        writer.write(http(503, b'{"error":{}}', "x-model-loading: true", "retry-after: 2"))

    service.behave = restarted
    async with open_door(service, poll_seconds=60, poll_waiting_seconds=0.1, load_wait=10) as door:
        asked = asyncio.create_task(door.chat())
        await told.wait()
        await asyncio.sleep(0.3)
        assert not asked.done()
        service.cards = [card("m")]
        response = await asked
        assert (response.status, len(service.requests)) == (200, 2)


async def test_a_service_that_says_again_that_it_loads_is_believed() -> None:
    async def loading(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(503, b'{"error":{}}', "x-model-loading: true"))

    async def broken(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(503, b'{"error":{}}'))

    for behave, times, load_wait in ((loading, 2, 10), (loading, 1, 0), (broken, 1, 10)):
        service = FakeUpstream(behave)
        async with open_door(service, poll_waiting_seconds=0.1, load_wait=load_wait) as door:
            assert (await door.chat()).status == 503
            assert len(service.requests) == times
