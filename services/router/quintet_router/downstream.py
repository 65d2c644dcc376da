"""One request of a client as it arrives, and the way of its answer back.

An answer's headers and its body would be two ASGI messages, and so two packets; every message is a dictionary and a
coroutine. Here the answer goes out in as few writes as possible, and nothing waits: callbacks tell of what happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

from quintet_router.headers import Header

if TYPE_CHECKING:
    from quintet_router.inbound import Inbound

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_NO_BODY = frozenset((204, 304))
HIGH_WATER = 256 << 10
"""When so many bytes of a body wait to be taken, no more are read."""


class Downstream:
    """``target`` is what stands in the request line, ``raw_path`` and ``query`` its parts; names of ``headers`` are in
    lower case, and ``fields`` is their dict."""

    __slots__ = (
        "_chunked", "_inbound", "_left", "_pieces", "_transport", "complete", "extra", "fields", "headers",
        "keep_alive", "lost", "method", "more", "old", "on_leave", "on_news", "query", "raw_path", "slow", "started",
        "waiting", "wants_continue",
    )  # fmt: skip

    def __init__(
        self, inbound: Inbound, method: str, raw_path: bytes, query: bytes, headers: list[Header], old: bool, keep: bool
    ) -> None:
        self._inbound = inbound
        self._transport = inbound.transport
        self.method = method
        self.raw_path = raw_path
        self.query = query
        self.headers = headers
        self.fields = fields = dict(headers)
        self.old = old
        """Whether the client speaks HTTP/1.0 and knows no chunks."""
        self.keep_alive = keep
        """Whether the connection stays open after the answer."""
        self.wants_continue = not old and fields.get(b"expect", b"").lower() == b"100-continue"
        self.more = True
        """Whether more of the body is to come."""
        self.waiting = 0
        """Bytes of it that are here and were not taken."""
        self._pieces: list[bytes] = []
        self.slow = False
        """Whether the client has to read before more is sent; ``when_writable`` tells when it has."""
        self.lost = False
        """Whether the client has left."""
        self.started = self.complete = False
        self.on_leave: Callable[[], None] | None = None
        """Called once when the client leaves."""
        self.on_news: Callable[[], None] | None = None
        """Called whenever more of the body has come."""
        self.extra = b""
        """Lines for the answer's headers, in place of those by which an upstream speaks to browsers."""
        self._chunked = False
        self._left: int | None = None
        """Bytes that the answer's headers promise and that are still to be sent."""

    # The request.

    @property
    def path(self) -> str:
        """The decoded path."""
        path = self.raw_path.decode("latin-1")
        return unquote(path) if "%" in path else path

    def add(self, piece: bytes) -> None:
        """The connection has read more of the body."""
        if self.complete:  # nobody wants it any more
            return
        self._pieces.append(piece)
        self.waiting += len(piece)
        if self.waiting > HIGH_WATER:
            self._inbound.pause()
        if self.on_news is not None:
            self.on_news()

    def end(self) -> None:
        """The connection has read all of the body."""
        self.more = False
        if self.on_news is not None:
            self.on_news()

    def take(self) -> bytes:
        """What is here of the body and was not taken yet."""
        pieces = self._pieces
        if len(pieces) == 1:
            data = pieces[0]
            self._pieces = []
        else:
            data = b"".join(pieces)
            pieces.clear()
        if self.waiting > HIGH_WATER:
            self._inbound.resume()
        self.waiting = 0
        return data

    def ask(self) -> None:
        """Say that the body is wanted, to a client that waits for this."""
        if self.wants_continue and not self.lost:
            self.wants_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def read(self, seconds: float) -> bytes | None:
        """More of the body, ``b""`` at its end, once something is here; None when nothing came for so long or the
        client has left."""
        self.ask()
        if self.more and not self.waiting and not self.lost:
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def wake() -> None:
                if not news.done():
                    news.set_result(None)

            self.on_news = self.on_leave = wake
            timer = asyncio.get_running_loop().call_later(seconds, wake)
            try:
                await news
            finally:
                timer.cancel()
                self.on_news = self.on_leave = None
        if self.lost or (self.more and not self.waiting):
            return None
        return self.take()

    # The client.

    @property
    def client(self) -> tuple[str, int] | None:
        """Where the connection comes from."""
        name = self._transport.get_extra_info("peername")
        return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None

    @property
    def server(self) -> tuple[str, int] | None:
        name = self._transport.get_extra_info("sockname")
        return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None

    def leave(self) -> None:
        """The client has left."""
        self.lost = True
        on_leave, self.on_leave = self.on_leave, None
        if on_leave is not None:
            on_leave()

    def hang_up(self, seconds: float | None) -> None:
        """Close the connection: within ``seconds``, as soon as what was sent has gone out, or with None at once."""
        transport = self._transport
        if seconds is None:
            transport.abort()
        else:
            transport.close()
            asyncio.get_running_loop().call_later(seconds, transport.abort)

    # The answer.

    def when_writable(self, on_writable: Callable[[], None] | None) -> None:
        self._inbound.on_writable = on_writable

    def begin(self, status: int, headers: Sequence[Header], body: bytes, complete: bool) -> None:
        """Send the beginning of the answer; ``complete``: all of it.

        Names of ``headers`` are in lower case and none is of one connection only; whoever made them has checked their
        bytes. Raises RuntimeError when the body does not have the length that they promise.
        """
        if self.lost:
            return
        self.started = True
        self.wants_continue = False
        head = (_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status) + self._inbound.default_headers
        if self.extra:
            head += self.extra
            headers = [header for header in headers if not header[0].startswith(b"access-control-")]
        for name, value in headers:
            head += name + b": " + value + b"\r\n"
            if name == b"content-length":
                self._left = int(value)
        if status in _NO_BODY or self.method == "HEAD":
            self._left = 0
            body = b""
        elif self._left is None:
            if self.old:
                self.keep_alive = False
            else:
                self._chunked = True
                head += b"transfer-encoding: chunked\r\n"
        if not self.keep_alive:
            head += b"connection: close\r\n"
        self._write(head + b"\r\n", body, complete)

    def go_on(self, body: bytes, complete: bool) -> None:
        """Send more of it. Raises RuntimeError like ``begin``."""
        if self.lost:
            return
        if self._chunked and body and not complete:
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        else:
            self._write(b"", b"" if self.method == "HEAD" else body, complete)

    def _write(self, head: bytes, body: bytes, complete: bool) -> None:
        if self._chunked:
            if body:
                head = b"%b%x\r\n%b\r\n" % (head, len(body), body)
            if complete:
                head += b"0\r\n\r\n"
            self._transport.write(head)
        else:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (complete and self._left):
                    raise RuntimeError("The body does not have the length that the headers promise.")
            self._transport.write(head + body if head else body)
        if complete:
            self.complete = True
            self._inbound.answered(self)
