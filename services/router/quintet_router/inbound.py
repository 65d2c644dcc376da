"""uvicorn's HTTP/1.1 protocol with what it leaves open: limits for headers, and a way to hang up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from quintet_common.errors import error_body
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quintet_router.settings import Settings

DOWNSTREAM = "quintet.downstream"
"""Key in a scope's ``extensions``: the ``Downstream`` of the request."""

_LAST_REQUESTS = 0.5


class Downstream:
    """The connection to a client. uvicorn writes to this instead of the transport.

    While it holds, what is written collects, to go out as one piece: an answer's headers and its body are two writes to
    uvicorn, and each would be a packet.
    """

    __slots__ = ("_flow", "_held", "_on_leave", "_transport", "is_closing", "lost", "write")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow
        self._held: list[bytes] = []
        self._on_leave: Callable[[], None] | None = None
        self.lost = False
        self.write: Callable[[bytes], None] = transport.write
        self.is_closing = transport.is_closing

    def hold(self) -> None:
        self.write = self._held.append

    def release(self) -> None:
        self.write = self._transport.write
        if self._held:
            data, self._held = b"".join(self._held), []
            self._transport.write(data)

    def close(self) -> None:
        self.release()
        self._transport.close()

    def hang_up(self, flush: bool) -> None:
        """Close the connection after what was sent, or cut it off at once."""
        if flush:
            self.close()
        else:
            self._transport.abort()

    def watch(self, on_leave: Callable[[], None]) -> None:
        """Call ``on_leave`` once when the client leaves: for a request that is here wholly, the same as waiting for
        ``receive``, without a coroutine."""
        self._on_leave = on_leave
        self._flow.resume_reading()  # after a large body it is paused, and the client's end would not be seen

    def forget(self, on_leave: Callable[[], None]) -> None:
        """Do not call ``on_leave`` any more; the next request may be watching already."""
        if self._on_leave == on_leave:
            self._on_leave = None

    def leave(self) -> None:
        """The client has left."""
        self.lost = True
        on_leave, self._on_leave = self._on_leave, None
        if on_leave is not None:
            on_leave()


def inbound_protocol(settings: Settings) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's ``http`` option."""
    return type("Inbound", (_Inbound,), {"settings": settings})


class _Inbound(HttpToolsProtocol):
    settings: Settings
    _downstream: Downstream
    _head_size = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = self._downstream = Downstream(transport, self.flow)  # type: ignore[assignment]
        self._head_timer = self.loop.call_later(self.settings.head_timeout, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._downstream.leave()

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

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {DOWNSTREAM: self._downstream}

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
