"""One request on its way through: what an upstream answers is pushed to the client as it comes.

Callbacks do the work and the request's task sleeps until the outcome is known, so a chunk costs no task switch. Nothing
is queued: while the client is slow the upstream is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from enum import Enum
from time import monotonic
from typing import Any

from starlette.types import Message, Receive, Send

from quintet_router.downstream import Downstream
from quintet_router.driven import Driven
from quintet_router.headers import Header
from quintet_router.settings import Settings
from quintet_router.upstream.connection import Connection
from quintet_router.upstream.pool import Pool
from quintet_router.usage import WINDOW

_KEPT = 4 * WINDOW
"""Bytes of an answer after which all but its last are let go of."""


class Outcome(Enum):
    DONE = "the answer is with the client"
    GONE = "the client left"
    BROKEN = "the upstream's connection broke"
    TIMEOUT = "the upstream was silent for too long"
    STALLED = "the client reads or sends no more"
    OTHER = "the answer's status says to ask another upstream"
    FROZEN = "the upstream accepts everything and answers nothing, not even polls"
    TOO_LARGE = "the body grew over the limit"


class Exchange:
    """The client's side of a request, and one attempt after the other at an upstream.

    ``request_id`` goes into the answer's headers. ``downstream`` is the client's connection, if the server gives
    it. Times are of ``time.monotonic``.
    """

    __slots__ = (
        "_chunked", "_downstream", "_first_byte", "_kept", "_left", "_listening", "_loop", "_may_move", "_other_on",
        "_pool", "_receive", "_recent", "_send", "_settings", "_since", "_sse", "_suspended", "_uploading", "added",
        "bytes", "connection", "error", "events", "first_byte_at", "gone", "headers", "other", "over", "request_id",
        "sent_at", "status",
    )  # fmt: skip

    def __init__(
        self, send: Send, receive: Receive, settings: Settings, request_id: bytes, downstream: Downstream | None = None
    ) -> None:
        self._send = send
        self._downstream = downstream
        self._receive = receive
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self.request_id = request_id
        self.connection: Connection | None = None
        self.over: asyncio.Future[Outcome] = self._loop.create_future()
        self.gone = False
        self.error: BaseException | None = None
        self.status = 0
        """What the client was told; 0 while nothing was sent to it."""
        self.other = 0
        """The status that the client was not told because another upstream is asked."""
        self.added: list[Header] = []
        """Headers of our own for the answer; they replace the upstream's of the same name."""
        self.headers: list[Header] = []
        self._recent: list[bytes] = []
        """The last pieces of the answer, of ``_kept`` bytes together."""
        self._kept = 0
        self.bytes = 0
        self.events = 0
        self.sent_at = 0.0
        self.first_byte_at = 0.0
        self._listening: Driven | asyncio.Handle | None = None
        self._suspended: Driven | None = None
        self._uploading = False
        self._chunked = False
        self._left = 0
        self._sse = False
        self._since = 0.0

    # The request's task.

    def listen(self) -> None:
        """From now on notice when the client leaves, and pass on what it sends."""
        if self._listening is not None or self.gone:
            return
        if self._downstream is not None and not self._uploading:
            if self._downstream.lost:
                self._client_left()
            else:
                self._downstream.watch(self._client_left)
            return
        coroutine: Any = self._receive()
        try:
            future = coroutine.send(None)
        except StopIteration as stop:
            self._listening = self._loop.call_soon(self._heard, stop.value, None)
        else:
            self._listening = Driven(coroutine, future, self._heard)

    def upload(self, chunked: bool, left: int) -> None:
        """Pass on the rest of the body, at most ``left`` bytes, as chunks where its length is unknown."""
        self._uploading, self._chunked, self._left = True, chunked, left
        self.listen()

    def attempt(
        self,
        pool: Pool,
        connection: Connection,
        head: bytes,
        body: bytes,
        first_byte: float,
        other_on: Collection[int],
        may_move: Callable[[float], bool],
    ) -> asyncio.Future[Outcome]:
        """Send the request. ``other_on``: statuses that end the attempt before the client is told anything, if
        ``may_move`` allows it at that time."""
        self.renew()
        self._pool = pool
        self.connection = connection
        self._first_byte = first_byte
        self._other_on = other_on
        self._may_move = may_move
        self.error = None
        self._since = self.sent_at = monotonic()
        if self.gone:
            self.over = self._loop.create_future()
            self.over.set_result(Outcome.GONE)
        else:
            connection.begin(self, head, body, not self._uploading)
        return self.over

    def renew(self) -> None:
        """Forget how the last attempt ended."""
        if self.over.done() and not self.gone:
            self.over = self._loop.create_future()

    def detach(self) -> None:
        """Part with an upstream whose answer is not complete: it sees its client leave."""
        if self.connection is not None:
            self.connection.abort()
            self.connection = None

    def close(self) -> None:
        """The end of the request. Called once, whatever happened."""
        self.detach()
        if self._downstream is not None:
            self._downstream.forget(self._client_left)
        for driven in (self._listening, self._suspended):
            if driven is not None:
                driven.cancel()
        self._listening = self._suspended = None

    def check(self, now: float) -> None:
        """End an attempt that takes too long."""
        limits, silent = self._settings, now - self._since
        if self._suspended is not None:
            if silent > limits.stall_timeout:
                self._finish(Outcome.STALLED)
        elif self._uploading:
            if silent > limits.body_timeout:
                self._finish(Outcome.STALLED)
        elif silent > (limits.gap_timeout if self.status else self._first_byte):
            self._finish(Outcome.TIMEOUT)

    @property
    def waiting(self) -> bool:
        """Whether the whole request was sent and nothing of its answer is there."""
        return not (self.status or self._uploading) and self.connection is not None

    def move(self) -> None:
        """End the attempt so that the request can be sent to another upstream."""
        self._finish(Outcome.FROZEN)

    @property
    def tail(self) -> bytes:
        """The last bytes of the answer."""
        return b"".join(self._recent)[-WINDOW:]

    @property
    def tells_later(self) -> bool:
        """Whether the answer's headers say that its usage is to be asked for once it has ended."""
        return (b"x-quintet-usage", b"later") in self.headers

    @property
    def between_events(self) -> bool:
        """Whether the answer is a stream of server-sent events that may be continued with one of our own.

        In the middle of an event it may not: an error glued to half a line corrupts the stream.
        """
        between = not self.bytes or self.tail.endswith((b"\n\n", b"\r\n\r\n"))
        return self._sse and between and self._suspended is None

    async def last_words(self, event: bytes) -> None:
        """End the stream with ``event``, and without ``[DONE]``."""
        await self._send({"type": "http.response.body", "body": event, "more_body": False})

    # The upstream's callbacks.

    def push(self, connection: Connection) -> None:
        if self._suspended is not None:
            return
        self._since = monotonic()
        headers = None
        if not self.status:
            headers = self._start(connection)
            if headers is None:
                return
            if self._downstream is None or self._downstream.slow:
                if not self._write({"type": "http.response.start", "status": self.status, "headers": headers}):
                    return
                headers = None
        chunks = connection.chunks
        complete = connection.complete
        if headers is None and not complete and not chunks:
            return
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        connection.chunks = []
        size = len(data)
        self.bytes += size
        self._kept += size
        self._recent.append(data)
        if self._kept > _KEPT:
            self._recent = [self.tail]
            self._kept = WINDOW
        if self._sse:
            self.events += data.count(b"\n\n")
        if complete:
            self._leave(connection)
        if self._pass_back(headers, data, complete) and complete:
            self._finish(Outcome.DONE)

    def _pass_back(self, headers: list[Header] | None, data: bytes, complete: bool) -> bool:
        """Send to the client, after ``headers`` if it does not have them yet. False when it is slow."""
        downstream = self._downstream
        if downstream is None or downstream.slow:
            return self._write({"type": "http.response.body", "body": data, "more_body": not complete})
        if headers is None:
            downstream.go_on(data, complete)
        else:
            downstream.begin(self.status, headers, data, complete)
        return True

    def broken(self, error: BaseException) -> None:
        self.error = error
        self._finish(Outcome.BROKEN)

    def _start(self, connection: Connection) -> list[Header] | None:
        """The headers to pass on; None when the answer is not for the client."""
        status, headers = connection.status, connection.headers
        if status in self._other_on and self._may_move(self._since):
            self.other = status
            self._finish(Outcome.OTHER)
            return None
        for name, value in headers:
            if name == b"content-type" and value.startswith(b"text/event-stream"):
                self._sse = True
        if self._sse and all(name != b"x-accel-buffering" for name, _ in headers):
            headers.append((b"x-accel-buffering", b"no"))  # or nginx in front of us would collect the stream
        if self.added:
            ours = {name for name, _ in self.added}
            headers = [header for header in headers if header[0] not in ours] + self.added
        headers.append((b"x-request-id", self.request_id))
        self.headers = headers
        self.status = status
        self.first_byte_at = self._since
        return headers

    def _leave(self, connection: Connection) -> None:
        """The answer is complete: the connection is free, and whether the client stays no longer matters."""
        self.connection = None
        self._pool.give_back(connection)
        if self._downstream is not None:
            self._downstream.forget(self._client_left)
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None

    def _write(self, message: Message) -> bool:
        """Send to the client the way of ASGI. False when it is slow: ``_resumed`` goes on later."""
        coroutine: Any = self._send(message)
        try:
            future = coroutine.send(None)
        except StopIteration:
            return True
        self._suspended = Driven(coroutine, future, self._resumed)
        if self.connection is not None:
            self.connection.hold()
        return False

    def _resumed(self, _: Any, error: BaseException | None) -> None:
        self._suspended = None
        connection = self.connection
        if error is not None:
            self.broken(error)
        elif connection is None:
            self._finish(Outcome.DONE)
        else:
            connection.resume()
            try:
                self.push(connection)
            except Exception as failure:  # the server refuses what the upstream sent
                self.broken(failure)

    def _finish(self, outcome: Outcome) -> None:
        if not self.over.done():
            self.over.set_result(outcome)

    # The client's callbacks.

    def _client_left(self) -> None:
        self.gone = True
        self._finish(Outcome.GONE)

    def _heard(self, message: Any, error: BaseException | None) -> None:
        self._listening = None
        if error is not None or message["type"] == "http.disconnect":
            self._client_left()
        elif self._uploading:
            self._pass_on(message.get("body", b""), message.get("more_body", False))
        else:
            self.listen()

    def _pass_on(self, piece: bytes, more: bool) -> None:
        connection = self.connection
        if connection is None:
            return None
        self._since = monotonic()
        self._left -= len(piece)
        if self._left < 0:
            return self._finish(Outcome.TOO_LARGE)
        if self._chunked:
            piece = (b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"") + (b"" if more else b"0\r\n\r\n")
        quick = connection.write(piece)
        if not more:
            self._uploading = False
            connection.sent = True
        if quick or not more:
            self.listen()
        else:
            connection.writable = self._listen_again
        return None

    def _listen_again(self) -> None:
        if self.connection is not None:
            self.connection.writable = None
        self._since = monotonic()
        self.listen()
