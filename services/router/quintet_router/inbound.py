"""uvicorn's HTTP/1.1 protocol with what it leaves open: limits for headers, and a short way to the client."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from quintet_common.errors import error_body
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quintet_router.downstream import KEY, Downstream, Watch
from quintet_router.settings import Settings

_LAST_REQUESTS = 0.5


def inbound_protocol(settings: Settings) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's ``http`` option."""
    return type("Inbound", (_Inbound,), {"settings": settings})


class _Inbound(HttpToolsProtocol):
    settings: Settings
    _watch: Watch
    _head_size = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = Watch()
        self._head_timer = self.loop.call_later(self.settings.head_timeout, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._watch.leave()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        limit = self.settings.max_head
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.scope is self.scope:  # headers complete
            if self._head_timer is not None:
                self._stop_timer()
                self._head_size = 0
            if len(data) > limit and sum(len(name) + len(value) for name, value in self.headers) > limit:
                self._refuse_head()
        else:
            self._head_size += len(data)
            if self._head_size > limit:
                self._refuse_head()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self.settings.head_timeout, self._head_late)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {KEY: Downstream(self.cycle, self._watch)}

    def shutdown(self) -> None:
        """The server stops. A request that is on its way on an idle connection is still refused in words."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LAST_REQUESTS, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse_head(self) -> None:
        self._refuse(431, f"The headers are larger than {self.settings.max_head >> 10} KiB.")

    def _refuse(self, status: int, message: str) -> None:
        body = msgspec.json.encode(error_body(status, message))
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
