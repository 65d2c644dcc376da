"""Asks our services for what answers cost that could not tell it: sound that streams, and what clients leave."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from urllib.parse import quote

import httpx2

from quintet_router.fleet import Fleet
from quintet_router.upstream.upstream import Upstream

_PAUSES = (0.05, 0.5, 2.0)
"""Before each question: a service needs a moment to notice that its client left, and longer in the middle of a step."""

_UNIT = re.compile("[a-z_]{1,32}")


class LateUsage:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._asking: set[asyncio.Task[None]] = set()

    def ask(
        self, service: Upstream, request_id: str, otherwise: dict[str, float], use: Callable[[dict[str, float]], None]
    ) -> None:
        """Call ``use`` with what the request cost as soon as the service says so, or with ``otherwise``."""
        task = asyncio.create_task(
            self._ask(f"{service.url}/quintet/usage/{quote(request_id, safe='')}", otherwise, use)
        )
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, url: str, otherwise: dict[str, float], use: Callable[[dict[str, float]], None]) -> None:
        for pause in _PAUSES:
            await asyncio.sleep(pause)
            usage = await self._answer(url)
            if usage:
                return use(usage)
        return use(otherwise)

    async def _answer(self, url: str) -> dict[str, float]:
        try:
            response = await self._fleet.client.get(url)
            found = response.raise_for_status().json()
            return {unit: float(amount) for unit, amount in found.items() if _UNIT.fullmatch(unit)}
        except (httpx2.HTTPError, ValueError, TypeError, AttributeError):
            return {}
