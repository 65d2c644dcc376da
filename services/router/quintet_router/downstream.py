"""The client's side of one request, without the detour over ASGI messages.

An answer's headers and its body are two ASGI messages, and so two packets; every message is a dictionary and a
coroutine. Here the answer goes out in as few writes as possible. uvicorn's state of the request is kept as its own
``send`` would, so that both may be used in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from quintet_router.headers import Header

KEY = "quintet.downstream"
"""In a scope's ``extensions``: the ``Downstream`` of the request."""

_NO_BODY = frozenset((204, 304))


class Watch:
    """Who wants to know when the client of a connection leaves."""

    __slots__ = ("lost", "on_leave")

    def __init__(self) -> None:
        self.lost = False
        self.on_leave: Callable[[], None] | None = None

    def leave(self) -> None:
        """The client has left."""
        self.lost = True
        on_leave, self.on_leave = self.on_leave, None
        if on_leave is not None:
            on_leave()


class Downstream:
    __slots__ = ("_cycle", "_watch")

    def __init__(self, cycle: RequestResponseCycle, watch: Watch) -> None:
        self._cycle = cycle
        self._watch = watch

    @property
    def lost(self) -> bool:
        """Whether the client has left."""
        return self._watch.lost

    @property
    def slow(self) -> bool:
        """Whether the client has to read first; uvicorn's ``send`` waits until then."""
        return self._cycle.flow.write_paused

    def close_after(self) -> None:
        """Let this be the connection's last answer, and say so in its headers."""
        self._cycle.keep_alive = False

    def take_body(self) -> bytes | None:
        """The request's body, if all of it is here; else None, and ``receive`` waits for it."""
        cycle = self._cycle
        if cycle.more_body or cycle.waiting_for_100_continue or cycle.disconnected:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        cycle.message_event.clear()
        return body

    def watch(self, on_leave: Callable[[], None]) -> None:
        """Call ``on_leave`` once when the client leaves: for a request that is here wholly, the same as waiting for
        ``receive``, without a coroutine."""
        self._watch.on_leave = on_leave
        self._cycle.flow.resume_reading()  # after a large body it is paused, and the client's end would not be seen

    def forget(self, on_leave: Callable[[], None]) -> None:
        """Do not call ``on_leave`` any more; the next request may be watching already."""
        if self._watch.on_leave == on_leave:
            self._watch.on_leave = None

    def hang_up(self, flush: bool) -> None:
        """Close the connection after what was sent, or cut it off at once."""
        transport: asyncio.Transport = self._cycle.transport
        if flush:
            transport.close()
        else:
            transport.abort()

    def begin(self, status: int, headers: Sequence[Header], body: bytes, complete: bool) -> None:
        """Send the beginning of the answer; ``complete``: all of it.

        Names of ``headers`` are in lower case and none is of one connection only; httptools has checked their bytes.
        Raises RuntimeError when the body does not have the length that they promise.
        """
        cycle = self._cycle
        if cycle.disconnected:
            return
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        head = STATUS_LINE[status]
        for name, value in cycle.default_headers:
            head += b"%b: %b\r\n" % (name, value)
        for name, value in headers:
            head += b"%b: %b\r\n" % (name, value)
            if name == b"content-length":
                cycle.chunked_encoding = False
                cycle.expected_content_length = int(value)
        if not cycle.keep_alive:
            head += b"connection: close\r\n"
        if cycle.chunked_encoding is None and status not in _NO_BODY:
            cycle.chunked_encoding = True
            head += b"transfer-encoding: chunked\r\n"
        self._write(head + b"\r\n", body, complete)

    def go_on(self, body: bytes, complete: bool) -> None:
        """Send more of it. Raises RuntimeError like ``begin``."""
        if not self._cycle.disconnected:
            self._write(b"", body, complete)

    def _write(self, head: bytes, body: bytes, complete: bool) -> None:
        cycle = self._cycle
        if cycle.chunked_encoding:
            if body:
                head = b"%b%x\r\n%b\r\n" % (head, len(body), body)
            if complete:
                head += b"0\r\n\r\n"
            cycle.transport.write(head)
        else:
            cycle.expected_content_length -= len(body)
            if cycle.expected_content_length < 0 or (complete and cycle.expected_content_length):
                raise RuntimeError("The body does not have the length that the headers promise.")
            cycle.transport.write(head + body if head else body)
        if complete:
            cycle.response_complete = True
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()
