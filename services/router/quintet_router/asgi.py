"""A request as an ASGI app sees it: for the app beside the hot path."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from quintet_router.downstream import Downstream
from quintet_router.headers import Header

_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Exchanged:
    """One request, with ``added`` headers for its answer."""

    def __init__(self, request: Downstream, added: list[Header]) -> None:
        self._request = request
        self._added = added
        self._news = asyncio.Event()
        self._taken = False

    async def run(self, app: ASGIApp) -> None:
        request = self._request
        request.on_news = request.on_leave = self._news.set
        try:
            await app(scope_of(request), self._receive, self._send)
        finally:
            request.on_news = request.on_leave = None

    async def _receive(self) -> Message:
        request = self._request
        request.ask()
        while not (request.lost or request.complete):
            if request.waiting or not (request.more or self._taken):
                data = request.take()
                self._taken = not request.more
                return {"type": "http.request", "body": data, "more_body": request.more}
            self._news.clear()
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        request = self._request
        while request.slow and not request.lost:
            writable = asyncio.Event()
            request.when_writable(writable.set)
            await writable.wait()
        if message["type"] == "http.response.start":
            request.begin(message["status"], [*self._checked(message["headers"]), *self._added], b"", False)
        else:
            request.go_on(message.get("body", b""), not message.get("more_body", False))
            self._news.set()

    def _checked(self, headers: list[Header]) -> list[Header]:
        if any(_FORBIDDEN.search(name) or _FORBIDDEN.search(value) for name, value in headers):
            raise RuntimeError("A header has bytes that no header may have.")
        return [(name.lower(), value) for name, value in headers]


def scope_of(request: Downstream) -> Scope:
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.0" if request.old else "1.1",
        "server": request.server,
        "client": request.client,
        "scheme": "http",
        "method": "GET" if request.method == "HEAD" else request.method,  # the answer's body is kept back
        "root_path": "",
        "path": request.path,
        "raw_path": request.raw_path,
        "query_string": request.query,
        "headers": request.headers,
    }
    return scope
