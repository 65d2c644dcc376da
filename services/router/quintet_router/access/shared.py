"""What several routers count together in Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

from quintet_router.driven import in_task

log = logging.getLogger("quintet.router")
ANSWER_SECONDS = 0.25
"""A socket to Redis is given up when nothing comes for so long."""
_PAUSE_SECONDS = 5.0
T = TypeVar("T")


def check_url(url: str) -> None:
    """Raises ValueError for a URL that is none, and ImportError when the extra ``redis`` is not installed."""
    import redis  # noqa: F401

    if not url.startswith(("redis://", "rediss://")):
        raise ValueError(f"--redis is like redis://host:6379, not {url!r}")


class Redis:
    """Questions to a server that may be away. While it is, each router counts for itself: a limit that is too wide for
    a moment is better than an endpoint that does not answer."""

    def __init__(self) -> None:
        self._paused_until = 0.0

    async def ask(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """The answer; None while there is none."""
        if monotonic() < self._paused_until:
            return None
        try:
            return await in_task(_within(2 * ANSWER_SECONDS, question()))
        except Exception as error:  # of the client library, the socket, or the script in Redis
            log.warning("Redis does not answer, this router counts for itself: %r", error)
            self._paused_until = monotonic() + _PAUSE_SECONDS
            return None


async def _within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(seconds):
        return await coroutine
