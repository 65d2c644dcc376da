"""Requests at once, counted over several routers through Redis."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Any, Protocol

from quintet_router.access.shared import ANSWER_SECONDS, Redis, check_url

LEASE_SECONDS = 30
"""How long a place is taken that nobody gives back, for its router was killed."""

# A key's places are the members of a sorted set, each with the time at which its lease ends, by Redis' clock.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[3])
redis.call('EXPIRE', KEYS[1], 2 * tonumber(ARGV[2]))
return 1
"""
# Those that have run out meanwhile are taken again: their requests are still under way.
_KEEP = """
local time = redis.call('TIME')
local ends = time[1] + time[2] / 1e6 + ARGV[1]
for number = 2, #ARGV do redis.call('ZADD', KEYS[1], ends, ARGV[number]) end
redis.call('EXPIRE', KEYS[1], 2 * tonumber(ARGV[1]))
"""


class Places(Protocol):
    async def take(self, name: str, most: int) -> str | None:
        """One of the ``most`` places of a key, to be given back; None when all are taken."""

    def give_back(self, place: str) -> None: ...

    async def keep(self) -> None:
        """Renew what is taken, until cancelled."""

    async def close(self) -> None: ...


class SharedPlaces:
    """``lease`` in whole seconds. Where Redis does not answer, a place is ``""``, and the router's own count decides.

    Raises ValueError for a URL that is none, and ImportError when the extra ``redis`` is not installed.
    """

    def __init__(self, url: str, lease: int = LEASE_SECONDS) -> None:
        check_url(url)
        from redis.asyncio import Redis as Client

        self._client: Any = Client.from_url(
            url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS, decode_responses=True
        )
        self._take, self._keep = self._client.register_script(_TAKE), self._client.register_script(_KEEP)
        self._redis = Redis()
        self._lease = lease
        self._taken: dict[str, str] = {}
        self._giving: set[asyncio.Task[object]] = set()

    async def take(self, name: str, most: int) -> str | None:
        place, key = os.urandom(12).hex(), _key(name)
        given = await self._redis.ask(lambda: self._take(keys=[key], args=[most, self._lease, place]))
        if given is None:
            return ""
        if not given:
            return None
        self._taken[place] = key
        return place

    def give_back(self, place: str) -> None:
        key = self._taken.pop(place, None)
        if key is not None:
            task = asyncio.create_task(self._redis.ask(lambda: self._client.zrem(key, place)))
            self._giving.add(task)
            task.add_done_callback(self._giving.discard)

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            for key in set(self._taken.values()):
                places = [place for place, its_key in self._taken.items() if its_key == key]
                await self._redis.ask(partial(self._keep, keys=[key], args=[self._lease, *places]))
                # What was given back meanwhile may have been taken again by that.
                if gone := [place for place in places if place not in self._taken]:
                    await self._redis.ask(partial(self._client.zrem, key, *gone))

    async def close(self) -> None:
        await asyncio.gather(*self._giving, return_exceptions=True)
        await self._client.aclose()


def _key(name: str) -> str:
    return f"quintet:places:{name}"
