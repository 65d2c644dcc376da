"""One HTTP/1.1 connection to an upstream, driven by callbacks: bytes come in, the exchange is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any, Protocol

import httptools

from quintet_router.headers import NOT_RETURNED, Header, named_by_connection

MAX_RESPONSE_HEAD = 256 << 10
RECEIVE_BUFFER = 512 << 10
"""Left to itself, the kernel would take in many MiB of an answer for a client that does not read it."""


class Listener(Protocol):
    """Whoever waits for the answer."""

    def push(self, connection: Connection) -> None:
        """Something of the answer is there: status and headers at least."""

    def broken(self, error: BaseException) -> None:
        """No more will come, and the answer is not complete."""


class Connection(asyncio.Protocol):
    """``chunks`` collects what came of the body and is emptied by the listener."""

    __slots__ = (
        "_closed", "_dirty", "_eof_ends", "_framed", "_head_size", "_hop", "_idle_list", "_keep", "_parser", "_paused",
        "_transport", "chunks", "complete", "headers", "idle_since", "listener", "reused", "sent", "status", "writable",
    )  # fmt: skip

    def __init__(self, idle_list: list[Connection]) -> None:
        self._idle_list = idle_list
        self._parser: Any = httptools.HttpResponseParser(self)
        self._closed = False
        self._paused = False
        self.reused = False
        self.idle_since = 0.0
        self.listener: Listener | None = None
        self.writable: Callable[[], None] | None = None
        """Set by whoever waits until more can be written."""
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self.chunks: list[bytes] = []
        self.complete = False
        self.sent = False
        """Whether the whole request was handed over."""
        self._framed = self._keep = self._dirty = self._eof_ends = False
        self._hop: bytes | None = None
        self._head_size = 0

    # The owner's side.

    def begin(self, listener: Listener, head: bytes, body: bytes, whole: bool) -> None:
        """Send a request, or the first of it when not ``whole``; the answer goes to ``listener``."""
        self._reset()
        self.listener = listener
        self.sent = whole
        if len(body) < 65536:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def write(self, data: bytes) -> bool:
        """Send more of a body. False when the upstream is slow: ``writable`` is called once more can be written."""
        self._transport.write(data)
        return not self._paused

    def hold(self) -> None:
        """Read no more until ``resume``."""
        if not self._closed:
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._closed and not self._transport.is_closing():
            self._transport.resume_reading()

    def release(self) -> bool:
        """Part with the listener: True when the connection is idle again, else it is closed."""
        self.listener = None
        self.writable = None
        reusable = self.complete and self._keep and self.sent and not (self._dirty or self._closed)
        if not reusable or self._transport.is_closing() or self._transport.get_write_buffer_size():
            self.abort()
            return False
        self.reused = True
        return True

    def abort(self) -> None:
        """Close at once; the upstream sees its client leave."""
        self.listener = None
        if not self._closed:
            self._transport.abort()

    @property
    def closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    # asyncio's side.

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        endpoint = transport.get_extra_info("socket")
        if endpoint is not None:
            endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER)

    def data_received(self, data: bytes) -> None:
        listener = self.listener
        if listener is None:  # nothing was asked
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
            if self.status:
                listener.push(self)
            else:
                self._head_size += len(data)
                if self._head_size > MAX_RESPONSE_HEAD:
                    raise ValueError("the answer's headers do not end")
        except Exception as error:
            self.listener = None
            listener.broken(error)

    def eof_received(self) -> None:
        if self._eof_ends and self.listener is not None:
            self.complete = True
            self.listener.push(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self in self._idle_list:
            self._idle_list.remove(self)
        elif self.listener is not None and not self.complete:  # else a slow client has yet to take ``chunks``
            listener, self.listener = self.listener, None
            listener.broken(exc or ConnectionResetError("closed by the upstream"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self.writable is not None:
            self.writable()

    # The parser's side.

    def on_message_begin(self) -> None:
        if self.complete:
            self._dirty = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:  # a trailer, or of an answer to nothing
            return
        name = name.lower()
        if name in NOT_RETURNED:
            if name == b"connection":
                self._hop = value if self._hop is None else self._hop + b"," + value
            elif name == b"transfer-encoding":
                self._framed = True
            return
        if name == b"content-length":
            self._framed = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._dirty:
            return
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows
            self.headers = []
            return
        self.status = status
        self._keep = self._parser.should_keep_alive()
        self._eof_ends = not self._framed and not self._keep and status not in (204, 304)
        if self._hop is not None and (named := named_by_connection(self._hop)):
            self.headers = [header for header in self.headers if header[0] not in named]

    def on_body(self, body: bytes) -> None:
        if not self._dirty:
            self.chunks.append(body)

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
