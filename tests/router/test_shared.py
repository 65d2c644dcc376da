"""What several routers count together: the requests of a key in a minute, and those at once."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quintet_common.models_yml import UpstreamSpec
from quintet_router.access import keyfile
from quintet_router.access.gate import Gate
from quintet_router.access.keyring import Keyring
from quintet_router.access.places import SharedPlaces
from quintet_router.access.rates import MemoryRates, SharedRates
from router.harness import FakeUpstream, http, open_door, until
from router.test_keys import bearer, key


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    pytest.importorskip("limits")
    pytest.importorskip("redis")
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("needs redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"], stdout=-3)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.02)
    yield f"redis://127.0.0.1:{port}"
    server.kill()
    server.wait()


async def test_two_routers_share_a_limit_through_redis(redis_url: str) -> None:
    one, two = SharedRates(redis_url), SharedRates(redis_url)
    rates = [await each.hit("a", 3) for each in (one, two, one)]
    assert [(rate.remaining, rate.wait) for rate in rates] == [(2, 0), (1, 0), (0, 0)]
    refused = await two.hit("a", 3)
    assert refused.remaining == 0
    assert 55 < refused.wait <= 60
    assert (await two.hit("b", 3)).wait == 0
    await one.close()
    await two.close()


async def test_without_redis_each_router_counts_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("limits")
    pytest.importorskip("redis")
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        rates = SharedRates(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        waits = [(await rates.hit("a", 2)).wait for _ in range(3)]
        assert time.monotonic() - started < 10
        assert waits[:2] == [0, 0]
        assert waits[2] > 0
        assert "Redis does not answer" in caplog.text
        await rates.close()
    assert (await MemoryRates().hit("a", 1)).wait == 0


async def test_two_routers_share_the_places_of_a_key(redis_url: str, tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(http(200, b"{}"))

    file = tmp_path / "keys.yml"
    keyfile.write(file, [key("a", concurrent_requests=2)])
    gates = [Gate(Keyring(file), SharedRates(redis_url), SharedPlaces(redis_url)) for _ in range(2)]
    upstream = FakeUpstream(slow)
    async with (
        open_door(upstream, gate=gates[0]) as one,
        open_door(UpstreamSpec(url=upstream.url), gate=gates[1]) as two,
    ):
        first = [await door.send("/v1/chat/completions", {"model": "m"}, bearer("a")) for door in (one, two)]
        await until(lambda: len(upstream.requests) == 2)
        for door in (one, two):
            response = await door.chat(bearer("a"))
            assert (response.status, response.error["code"]) == (429, "rate_limit_exceeded")
        first[0][1].close()  # a client that leaves gives its place back, to both routers
        go_on.set()
        await until(lambda: not any(client.running for gate in gates for client in gate.keyring._clients.values()))  # type: ignore[union-attr]
        for gate in gates:
            await asyncio.gather(*gate._places._giving)  # type: ignore[union-attr]  # Redis is told beside the requests
        assert [(await door.chat(bearer("a"))).status for door in (two, one)] == [200, 200]


async def test_a_killed_router_takes_its_places_with_it_for_the_length_of_a_lease_only(redis_url: str) -> None:
    killed, other = SharedPlaces(redis_url, lease=1), SharedPlaces(redis_url, lease=1)
    assert await killed.take("b", 1)
    assert await other.take("b", 1) is None
    await asyncio.sleep(1.1)
    place = await other.take("b", 1)
    assert place
    other.give_back(place)
    await killed.close()
    await other.close()


async def test_a_long_request_keeps_its_place(redis_url: str) -> None:
    one, two = SharedPlaces(redis_url, lease=1), SharedPlaces(redis_url, lease=1)
    keeping = asyncio.create_task(one.keep())
    assert await one.take("c", 1)
    for _ in range(6):
        await asyncio.sleep(0.5)
        assert await two.take("c", 1) is None
    keeping.cancel()
    await one.close()
    await two.close()


class KeptLate:
    """In place of Redis: a place is given back while all are kept, and what keeps them comes after it."""

    def __init__(self, places: SharedPlaces) -> None:
        self.taken: set[str] = set()
        self._places = places

    async def take(self, *, args: list[Any], **_: Any) -> int:
        self.taken.add(args[-1])
        return 1

    async def keep(self, *, args: list[Any], **_: Any) -> None:
        self._places.give_back(args[-1])
        await asyncio.gather(*self._places._giving)
        self.taken.update(args[1:])

    async def zrem(self, _: str, *places: str) -> None:
        self.taken.difference_update(places)


async def test_a_place_that_is_given_back_while_it_is_kept_is_free() -> None:
    pytest.importorskip("redis")
    places = SharedPlaces("redis://127.0.0.1:1", lease=0)
    redis = KeptLate(places)
    places._take, places._keep, places._client = redis.take, redis.keep, redis
    assert await places.take("a", 1) in redis.taken
    keeping = asyncio.create_task(places.keep())
    await until(lambda: not places._taken)
    await until(lambda: not redis.taken)
    keeping.cancel()


async def test_without_redis_the_routers_own_count_decides() -> None:
    pytest.importorskip("limits")
    pytest.importorskip("redis")
    places = SharedPlaces("redis://127.0.0.1:1")
    assert await places.take("a", 1) == ""
    places.give_back("")
    await places.close()


def test_a_wrong_url() -> None:
    pytest.importorskip("redis")
    with pytest.raises(ValueError, match="--redis is like"):
        SharedPlaces("http://h")
