"""Pages of other sites: which may use the router from a browser, and what their browsers have to be told for it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quintet_common.values import origin_mistake

from quintet_router.downstream import Downstream

_ALL = b"*"
_NAMES = re.compile(rb"[\w, -]+", re.ASCII)
_READABLE = (
    b"x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests"
)
_SECONDS = 600
"""So long a browser need not ask again before each request."""


class Cors:
    """``origins`` are like ``https://chat.example.com``, or ``*`` for all. Raises ValueError for what is neither.

    Cookies mean nothing here, so none are allowed: who uses the router is told by a key, which a page has to know.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        for origin in origins:
            if mistake := origin_mistake(origin):
                raise ValueError(f"cors: {mistake}")
        self._origins = frozenset(origin.encode() for origin in origins)

    def allow(self, request: Downstream) -> bool:
        """Let the answer tell the browser that its page may read it. True for the question that a browser asks before
        the request itself, which ``answer`` answers."""
        origin = request.fields.get(b"origin")
        if origin is None or not (_ALL in self._origins or origin in self._origins):
            return False
        told = _ALL if _ALL in self._origins else origin
        request.extra = b"access-control-allow-origin: %b\r\naccess-control-expose-headers: %b\r\nvary: origin\r\n" % (
            told,
            _READABLE,
        )
        return request.method == "OPTIONS" and b"access-control-request-method" in request.fields

    async def answer(self, request: Downstream) -> None:
        """The answer to that question."""
        wanted = request.fields.get(b"access-control-request-headers", b"")
        names = wanted if _NAMES.fullmatch(wanted) else b"authorization, content-type"
        request.extra += b"access-control-allow-methods: GET, POST\r\naccess-control-allow-headers: %b\r\n" % names
        request.extra += b"access-control-max-age: %d\r\n" % _SECONDS
        request.begin(204, [], b"", True)
