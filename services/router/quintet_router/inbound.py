"""The clients' side: HTTP/1.1 connections for uvicorn's server, parsed by httptools.

uvicorn's own protocol makes a task, several events and timers for every request and knows no limits for headers. Here a
request is one object, and its coroutine is driven by callbacks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import httptools
import msgspec
import uvicorn
from quintet_common.errors import error_body
from uvicorn.server import ServerState

from quintet_router.downstream import Downstream
from quintet_router.driven import Driven
from quintet_router.headers import Header
from quintet_router.settings import Settings

log = logging.getLogger("quintet.router")
Handler = Callable[[Downstream], Coroutine[Any, Any, None]]
"""Answers one request."""
_LAST_REQUESTS = 0.5
_LAST_WORDS = 2.0
"""Seconds for which what a client still sends is thrown away, so that it can read why."""
_MOST_HEADERS = 256
_FRAMING = (b"content-length", b"transfer-encoding")
_NEVER = float("inf")


def inbound_protocol(handler: Handler, settings: Settings) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's ``http`` option."""
    return type("BoundInbound", (Inbound,), {"handler": staticmethod(handler), "settings": settings})


class Inbound(asyncio.Protocol):
    """One connection; its requests are answered one after the other."""

    handler: Handler
    settings: Settings
    transport: asyncio.Transport
    _dated: tuple[object, bytes] = (None, b"")

    def __init__(self, config: uvicorn.Config, server_state: ServerState, **_: object) -> None:
        self._state = server_state
        self._loop = asyncio.get_running_loop()
        self._idle_seconds = config.timeout_keep_alive
        self._parser: Any = None
        self._url = b""
        self._headers: list[Header] = []
        self._in_head = False
        self._primes = False
        """Whether the parser is told what is known already."""
        self._upgrades = False
        self._head_size = 0
        self._incoming: Downstream | None = None
        """The request whose body is being read."""
        self._current: Downstream | None = None
        """The request that is being answered."""
        self._next: deque[Downstream] = deque()
        self._deaf = False
        self._paused = False
        self._client_slow = False
        self.on_writable: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._deadline = _NEVER

    # asyncio's side.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._state.connections.add(self)  # type: ignore[arg-type]  # it asks for nothing but ``shutdown``
        self._new_parser()
        self._expect(self.settings.head_timeout)

    def connection_lost(self, _: Exception | None) -> None:
        self._state.connections.discard(self)
        self._deadline = _NEVER
        if self._timer is not None:
            self._timer.cancel()
        self._parser = self._incoming = None
        current, self._current = self._current, None
        self._next.clear()
        if current is not None:
            current.leave()
        self.resume_writing()  # whoever waits to write need not wait any more

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._ignore_upgrade(memoryview(data)[upgrade.args[0] :]):
                return self._malformed()
        except httptools.HttpParserError:
            return self._malformed()
        limit = self.settings.max_head
        if self._in_head:
            if not self._head_size and self._current is None and not self._next:
                self._expect(self.settings.head_timeout)
            self._head_size += len(data)
            if self._head_size > limit:
                return self._refuse_head()
        elif len(self._headers) > _MOST_HEADERS or (
            len(data) > limit and len(self._url) + sum(len(name) + len(value) for name, value in self._headers) > limit
        ):
            return self._refuse_head()
        if self._current is None and self._next:
            self._start(self._next.popleft())
        return None

    def eof_received(self) -> None:
        pass

    def pause_writing(self) -> None:
        self._slow(True)

    def resume_writing(self) -> None:
        self._slow(False)
        on_writable, self.on_writable = self.on_writable, None
        if on_writable is not None:
            on_writable()

    def _slow(self, slow: bool) -> None:
        self._client_slow = slow
        if self._current is not None:
            self._current.slow = slow

    # The parser's side.

    def on_message_begin(self) -> None:
        if self._primes:
            return
        self._url = b""
        self._headers = []
        self._in_head = True
        self._incoming = None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer, or known already
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._primes:
            self._primes = False
            return
        self._in_head = False
        self._head_size = 0
        self._deadline = _NEVER
        url, headers, parser = self._url, self._headers, self._parser
        if url[:1] == b"/" and b"#" not in url:
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path or b"/", parsed.query or b""
        old = parser.get_http_version() == "1.0"
        keep = not old and parser.should_keep_alive()
        self._incoming = Downstream(self, parser.get_method().decode(), raw_path, query, headers, old, keep)
        self._upgrades = parser.should_upgrade()
        self._next.append(self._incoming)
        if self._current is not None:
            self.pause()

    def on_body(self, body: bytes) -> None:
        if self._incoming is not None:
            self._incoming.add(body)

    def on_message_complete(self) -> None:
        if self._incoming is not None and not self._upgrades:
            self._incoming.end()
            self._incoming = None

    # The requests' side.

    @property
    def default_headers(self) -> bytes:
        """The lines that every answer has. uvicorn makes a new list of them every second."""
        known, lines = self._dated
        if known is not self._state.default_headers:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in self._state.default_headers)
            type(self)._dated = self._state.default_headers, lines
        return lines

    def pause(self) -> None:
        """Read no more until ``resume``."""
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def answered(self, request: Downstream) -> None:
        """All of a request's answer is sent."""
        self._current = None
        if not request.keep_alive:
            self._part()
        elif self._next:
            self._loop.call_soon(self._go_on)
        else:
            if self._paused:
                self.resume()
            self._expect(self.settings.head_timeout if self._in_head else self._idle_seconds)

    def _part(self) -> None:
        """Close the connection. While the client may still send, only our half: what a closed connection has not read
        makes the kernel reset it, and the client may lose the answer."""
        sends = self._deaf or self._incoming is not None or self._next
        if not (sends and self.transport.can_write_eof()) or self.transport.is_closing():
            return self.transport.close()
        self._stop_reading()
        self.transport.write_eof()
        self.resume()
        return self._expect(_LAST_WORDS)

    def shutdown(self) -> None:
        """The server stops. A request that is on its way on an idle connection is still refused in words."""
        if self._current is None:
            self._loop.call_later(_LAST_REQUESTS, self._end)
        else:
            self._current.keep_alive = False

    def _end(self) -> None:
        if self._current is None:
            self.transport.close()
        else:
            self._current.keep_alive = False

    def _go_on(self) -> None:
        if self._current is None and self._next and not self.transport.is_closing():
            self._start(self._next.popleft())
            if not self._next:
                self.resume()

    def _start(self, request: Downstream) -> None:
        self._current = request
        request.slow = self._client_slow
        run = Driven(self.handler(request), partial(self._ended, request))
        self._state.tasks.add(run)  # type: ignore[arg-type]  # the server waits until it has ended, or cancels it
        run.step()

    def _ended(self, request: Downstream, run: Driven, error: BaseException | None) -> None:
        self._state.tasks.discard(run)
        if error is not None:
            log.error("A request failed.", exc_info=error)
        if not request.complete and not self.transport.is_closing():
            self.transport.close()

    # What goes wrong.

    def _malformed(self) -> None:
        """What came is no HTTP. An answer that has begun cannot be followed by another one."""
        if self._current is None and self._next and not self._next[0].more:
            self._start(self._next.popleft())
        current = self._current
        self._stop_reading()
        if current is None or (current is self._incoming and not current.started):
            self._refuse(400, "Invalid HTTP request received.")
        elif current is self._incoming:
            self.transport.abort()
        else:
            current.keep_alive = False
        if current is not None and current is self._incoming:
            current.leave()

    def _refuse_head(self) -> None:
        if self._current is None:
            limit = self.settings.max_head >> 10
            self._refuse(431, f"The headers are larger than {limit} KiB, or more than {_MOST_HEADERS}.")
        else:  # its answer comes first, and is the last
            self._stop_reading()
            self._current.keep_alive = False

    def _ignore_upgrade(self, rest: memoryview) -> bool:
        """Go on after a head that asks for another protocol, as RFC 9110 allows. False when ``rest`` is no HTTP.

        The parser would not even read the body, so a new one is told how long that is and given the rest.
        """
        while self._incoming is not None:
            framing = [header for header in self._headers if header[0] in _FRAMING]
            head = b"".join(b"%b: %b\r\n" % header for header in framing)
            self._new_parser()
            self._primes, self._upgrades = True, False
            try:
                self._parser.feed_data(b"POST / HTTP/1.1\r\n" + head + b"\r\n")
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            except httptools.HttpParserError:
                return False
            else:
                return True
        return False

    def _stop_reading(self) -> None:
        """From now on what comes is thrown away."""
        self._deaf = True
        self._next.clear()

    def _refuse(self, status: int, message: str) -> None:
        self._stop_reading()
        body = msgspec.json.encode(error_body(status, message))
        refusal = Downstream(self, "GET", b"", b"", [], False, False)
        refusal.begin(
            status, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], body, True
        )

    # Time.

    def _expect(self, seconds: float) -> None:
        """Close the connection unless something happens within ``seconds``. Timers are moved only when they fire."""
        self._deadline = self._loop.time() + seconds
        if self._deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._arm()

    def _arm(self) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._late)

    def _late(self) -> None:
        self._timer = None
        self._timer_at = _NEVER
        if self._deadline <= self._loop.time():
            if self.transport.get_write_buffer_size():  # the client does not even read
                self.transport.abort()
            else:
                self.transport.close()
        elif self._deadline != _NEVER:
            self._arm()

    def _new_parser(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
