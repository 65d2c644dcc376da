"""Where requests wait for a model that is on its way: it loads, or its service has not come up yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from quintet_common.errors import LOADING, ApiError

from quintet_router.body import ClientGone
from quintet_router.catalog import Catalog, Model
from quintet_router.exchange import Exchange

T = TypeVar("T")
_NEWS_SECONDS = 3.0


class NotYet(ApiError):
    """503: the model cannot answer now but is expected to. ``model`` is its id, or the name that is promised."""

    def __init__(self, model: str, error: ApiError) -> None:
        super().__init__(error.status, error.message, code=error.code, retry_after=error.retry_after)
        self.model = model


def still_loading(model: Model) -> NotYet:
    """How far the model is, as its service says."""
    progress, note = model.card.get("progress"), model.card.get("note")
    parts = [f"{progress:.0%}".replace("%", " %")] if isinstance(progress, int | float) else []
    parts += [note] if note and isinstance(note, str) else []
    detail = f" ({', '.join(parts)})" if parts else ""
    message = f"The model {model.id!r} is loading{detail}. Try again in a moment."
    return NotYet(model.id, ApiError(503, message, code=LOADING, retry_after=2))


class Lobby:
    """``seconds`` is how long a request waits at most."""

    def __init__(self, catalog: Catalog, seconds: float) -> None:
        self._catalog = catalog
        self._seconds = seconds
        self.lengths: dict[str, int] = {}
        """Requests that wait, by model."""

    async def news(self, model: str, exchange: Exchange) -> None:
        """Until an upstream has told its models, for a moment at most. Raises ClientGone."""
        await self._pause(model, min(_NEWS_SECONDS, self._seconds), exchange)

    async def hold(self, model: str, over: Callable[[], bool], until: float, exchange: Exchange) -> None:
        """Until ``over``, which changes with the catalog, and with the time ``until``. Raises ClientGone."""
        while not over():
            await self._pause(model, max(0.0, until - monotonic()), exchange)

    async def wait(self, look: Callable[[], T], exchange: Exchange) -> T:
        """What ``look`` returns once it no longer raises NotYet. Raises NotYet after too long, and ClientGone."""
        deadline = monotonic() + self._seconds
        while True:
            try:
                return look()
            except NotYet as error:
                left = deadline - monotonic()
                if left <= 0:
                    raise
                await self._pause(error.model, left, exchange)

    async def _pause(self, model: str, seconds: float, exchange: Exchange) -> None:
        """Until the catalog changes, at most ``seconds``."""
        self.lengths[model] = self.lengths.get(model, 0) + 1
        try:
            either: set[asyncio.Future[Any]] = {self._catalog.next_rebuild(), exchange.over}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.lengths[model] -= 1
            if not self.lengths[model]:
                del self.lengths[model]
        if exchange.gone:
            raise ClientGone
