"""One request on its way through: what an upstream answers is pushed to the client as it comes.

Callbacks do the work and the request's task sleeps until the outcome is known, so a chunk costs no task switch. Nothing
is queued: while the client is slow the upstream is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from enum import Enum
from time import monotonic

from quintet_router.downstream import Downstream
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

    ``request_id`` goes into the answer's headers. Times are of ``time.monotonic``.
    """

    __slots__ = (
        "_chunked", "_downstream", "_first_byte", "_kept", "_left", "_loop", "_may_move", "_other_on", "_pool",
        "_recent", "_settings", "_since", "_sse", "_suspended", "_uploading", "added", "bytes", "connection", "error",
        "events", "first_byte_at", "gone", "headers", "other", "over", "request_id", "sent_at", "status",
        "turned_down",
    )  # fmt: skip

    def __init__(self, downstream: Downstream, settings: Settings, request_id: bytes) -> None:
        self._downstream = downstream
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
        self.turned_down: list[Header] = []
        """The headers that came with it."""
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
        self._suspended = False
        """Whether the client has to read before more of the answer is sent."""
        self._uploading = False
        self._chunked = False
        self._left = 0
        self._sse = False
        self._since = 0.0

    # The request's task.

    def listen(self) -> None:
        """From now on notice when the client leaves."""
        if self._downstream.lost:
            self._client_left()
        else:
            self._downstream.on_leave = self._client_left

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
        if self.over.done():
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
            if self._uploading:
                self._downstream.on_news = self._pass_on
                self._pass_on()
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
        downstream = self._downstream
        downstream.on_leave = downstream.on_news = None
        if self._suspended:
            downstream.when_writable(None)

    def check(self, now: float) -> None:
        """End an attempt that takes too long."""
        if self.connection is None:
            return
        limits, silent = self._settings, now - self._since
        if self._suspended:
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
        recent = self._recent
        return recent[0][-WINDOW:] if len(recent) == 1 else b"".join(recent)[-WINDOW:]

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
        return self._sse and between and not self._suspended

    def last_words(self, event: bytes) -> None:
        """End the stream with ``event``, and without ``[DONE]``."""
        self._downstream.go_on(event, True)

    # The upstream's callbacks.

    def push(self, connection: Connection) -> None:
        downstream = self._downstream
        if downstream.slow:
            self._suspended = True
            connection.hold()
            downstream.when_writable(self._resumed)
            return
        self._since = monotonic()
        begins = not self.status
        if begins and not self._start(connection):
            return
        chunks, complete = connection.chunks, connection.complete
        if len(chunks) == 1:
            data = chunks[0]
        elif chunks or begins or complete:
            data = b"".join(chunks)
        else:
            return
        connection.chunks = []
        size = len(data)
        self.bytes += size
        self._kept += size
        self._recent.append(data)
        if self._kept > _KEPT:
            self._recent = [self.tail]
            self._kept = WINDOW
        if self._sse:
            self.events += data.count(b"\n\n") + data.count(b"\r\n\r\n")
        if complete:
            self._leave(connection)
        if begins:
            downstream.begin(self.status, self.headers, data, complete)
        else:
            downstream.go_on(data, complete)
        if complete:
            self._finish(Outcome.DONE)

    def broken(self, error: BaseException) -> None:
        self.error = error
        self._finish(Outcome.BROKEN)

    def _start(self, connection: Connection) -> bool:
        """Make the headers to pass on; False when the answer is not for the client."""
        status, headers = connection.status, connection.headers
        if status in self._other_on and self._may_move(self._since):
            self.other = status
            self.turned_down = headers
            self._finish(Outcome.OTHER)
            return False
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
        return True

    def _leave(self, connection: Connection) -> None:
        """The answer is complete: the connection is free, and whether the client stays no longer matters."""
        self.connection = None
        self._pool.give_back(connection)
        self._downstream.on_leave = None

    def _resumed(self) -> None:
        self._suspended = False
        connection = self.connection
        if connection is not None and not self.gone:
            connection.resume()
            try:
                self.push(connection)
            except Exception as failure:  # the answer is not what its headers promise
                self.broken(failure)

    def _finish(self, outcome: Outcome) -> None:
        if not self.over.done():
            self.over.set_result(outcome)

    # The client's callbacks.

    def _client_left(self) -> None:
        self.gone = True
        self._finish(Outcome.GONE)

    def _pass_on(self) -> None:
        """More of the body is here."""
        connection, downstream = self.connection, self._downstream
        if connection is None or connection.writable is not None:
            return None
        piece, more = downstream.take(), downstream.more
        if more and not piece:
            return downstream.ask()
        self._since = monotonic()
        self._left -= len(piece)
        if self._left < 0:
            return self._finish(Outcome.TOO_LARGE)
        if self._chunked:
            piece = (b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"") + (b"" if more else b"0\r\n\r\n")
        quick = connection.write(piece)
        if not more:
            self._uploading = False
            downstream.on_news = None
            connection.sent = True
        elif not quick:
            connection.writable = self._write_again
        return None

    def _write_again(self) -> None:
        if self.connection is not None:
            self.connection.writable = None
            self._since = monotonic()
            self._pass_on()
