"""Requests per minute: exact, over the last 60 seconds. In memory, or shared by several routers through Redis."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, Protocol

from quintet_router.access.shared import ANSWER_SECONDS, Redis, check_url
from quintet_router.headers import Header

WINDOW = 60.0


@dataclass(frozen=True, slots=True)
class Rate:
    """What is left of a limit after a request. ``wait`` is how long until there is more, in seconds; 0 when the request
    itself was within the limit."""

    limit: int
    remaining: int
    wait: float

    @property
    def headers(self) -> list[Header]:
        return [
            (b"x-ratelimit-limit-requests", b"%d" % self.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % self.remaining),
            (b"x-ratelimit-reset-requests", b"%ds" % math.ceil(self.wait)),
        ]


class Window:
    """The times of the requests of the last minute."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def hit(self, limit: int, now: float) -> Rate:
        """Count a request if it is within the limit; one that is refused does not count."""
        rate = self.look(limit, now)
        if rate.wait:
            return rate
        self._times.append(now)
        return Rate(limit, rate.remaining - 1, 0.0)

    def look(self, limit: int, now: float) -> Rate:
        """What is left."""
        times = self._times
        while times and now - times[0] >= WINDOW:
            times.popleft()
        if len(times) >= limit:
            return Rate(limit, 0, WINDOW - (now - times[-limit]))
        return Rate(limit, limit - len(times), 0.0)


class Rates(Protocol):
    """Where requests are counted, by the name of a key."""

    async def hit(self, name: str, limit: int) -> Rate: ...

    async def look(self, name: str, limit: int) -> Rate:
        """What is left; nothing is counted."""

    async def close(self) -> None: ...


class MemoryRates:
    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}

    async def hit(self, name: str, limit: int) -> Rate:
        return self._window(name).hit(limit, monotonic())

    async def look(self, name: str, limit: int) -> Rate:
        return self._window(name).look(limit, monotonic())

    def _window(self, name: str) -> Window:
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = Window()
        return window

    async def close(self) -> None: ...


class SharedRates:
    """In Redis, through the library ``limits``; in memory while Redis does not answer.

    Raises ValueError for a URL that is none, and ImportError when the extra ``redis`` is not installed.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        from limits import RateLimitItemPerMinute
        from limits.aio.storage import RedisStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        self._storage: Any = RedisStorage(
            f"async+{url}", implementation="redispy", key_prefix="quintet",
            socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS,
        )  # fmt: skip
        self._limiter = MovingWindowRateLimiter(self._storage)
        self._per_minute = RateLimitItemPerMinute
        self._own = MemoryRates()
        self._redis = Redis()

    async def hit(self, name: str, limit: int) -> Rate:
        return await self._redis.ask(lambda: self._ask(name, limit, True)) or await self._own.hit(name, limit)

    async def look(self, name: str, limit: int) -> Rate:
        return await self._redis.ask(lambda: self._ask(name, limit, False)) or await self._own.look(name, limit)

    async def _ask(self, name: str, limit: int, counts: bool) -> Rate:
        item = self._per_minute(limit)
        within = await self._limiter.hit(item, name) if counts else await self._limiter.test(item, name)
        reset, remaining = await self._limiter.get_window_stats(item, name)
        return Rate(limit, max(0, remaining), 0.0 if within else max(0.001, reset - time()))

    async def close(self) -> None:
        await self._storage.bridge.storage.aclose()
