"""Where requests wait while all upstreams of their model have as many as they may: first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from quintet_common.errors import ApiError

from quintet_router.body import ClientGone
from quintet_router.catalog import Catalog, Target
from quintet_router.exchange import Exchange
from quintet_router.replies import unavailable
from quintet_router.settings import Settings
from quintet_router.upstream.upstream import Upstream


class _Waiter:
    """A request in the queue. ``turn`` gets the target whose free place it was given."""

    __slots__ = ("targets", "turn")

    def __init__(self, targets: dict[Upstream, Target]) -> None:
        self.targets = targets
        self.turn: asyncio.Future[Target] = asyncio.get_running_loop().create_future()


class Queue:
    """Places at upstreams. Whoever has one gives it to ``leave`` exactly once.

    A place that becomes free goes straight to the request that waits longest for this upstream, so none that comes
    later can take it.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._waiting: dict[Upstream, deque[_Waiter]] = {}
        self.lengths: dict[str, int] = {}
        """Requests that wait, by model."""

    def leave(self, upstream: Upstream) -> None:
        line = self._waiting.get(upstream)
        while line:
            waiter = line.popleft()
            if not waiter.turn.done():
                waiter.turn.set_result(waiter.targets[upstream])
                return
        if line is not None:
            del self._waiting[upstream]
        upstream.outstanding -= 1

    async def wait(
        self, model: str, targets: Sequence[Target], exchange: Exchange, elsewhere: Callable[[], bool]
    ) -> Target | None:
        """One of ``targets``, which are all full, with a place there; None once ``elsewhere`` says that other upstreams
        are better, which is asked whenever the catalog has changed.

        Raises ApiError 429 when too many wait already, 503 when it takes too long, ClientGone, and what ``elsewhere``
        raises.
        """
        length = self.lengths.get(model, 0)
        if length >= self._settings.max_waiting:
            raise ApiError(429, "Too many requests are waiting for this model.", code="queue_full", retry_after=1)
        waiter = _Waiter({target.upstream: target for target in targets})
        for upstream in waiter.targets:
            self._waiting.setdefault(upstream, deque()).append(waiter)
        self.lengths[model] = length + 1
        try:
            await self._turn(waiter, exchange, elsewhere)
            if exchange.gone:
                raise ClientGone
            return waiter.turn.result() if waiter.turn.done() else None
        except BaseException:
            if waiter.turn.done() and not waiter.turn.cancelled():
                self.leave(waiter.turn.result().upstream)
            raise
        finally:
            self._remove(model, waiter)

    async def _turn(self, waiter: _Waiter, exchange: Exchange, elsewhere: Callable[[], bool]) -> None:
        """Until there is nothing to wait for any more. Raises ApiError 503."""
        deadline = monotonic() + self._settings.queue_wait
        while True:
            news = self._catalog.next_rebuild()
            either: set[asyncio.Future[Any]] = {waiter.turn, exchange.over, news}
            await asyncio.wait(either, timeout=deadline - monotonic(), return_when=asyncio.FIRST_COMPLETED)
            if waiter.turn.done() or exchange.gone:
                return
            if news.done() and elsewhere():
                return
            if monotonic() >= deadline:
                raise unavailable("The model is busy: this request has waited too long for its turn.", 1)

    def _remove(self, model: str, waiter: _Waiter) -> None:
        waiter.turn.cancel()
        self.lengths[model] -= 1
        if not self.lengths[model]:
            del self.lengths[model]
        for upstream in waiter.targets:
            line = self._waiting.get(upstream)
            if line is not None and waiter in line:
                line.remove(waiter)
                if not line:
                    del self._waiting[upstream]
