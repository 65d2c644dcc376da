"""What is kept of every finished request: numbers for Prometheus, a line for the access log, a span."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import msgspec
from quintet_common.errors import CLIENT_CLOSED_REQUEST

from quintet_router.access.keyring import ANYONE, Client
from quintet_router.exchange import Exchange
from quintet_router.late_usage import LateUsage
from quintet_router.metrics import Metrics
from quintet_router.spans import Spans
from quintet_router.upstream.upstream import Upstream
from quintet_router.usage import read_usage

access_log = logging.getLogger("quintet.access")
_ONE = {"requests": 1.0}


@dataclass(slots=True)
class Seen:
    """One request as it is told about afterwards. Times are of ``time.monotonic``."""

    endpoint: str
    method: str
    exchange: Exchange
    arrived: float
    client: Client = ANYONE
    inside: bool = False
    """Whether the gate has let it in, and has to let it out."""
    place: str = ""
    """What it has taken of its key's places."""
    model: str = ""
    upstream: str = ""
    retries: int = 0
    overhead: float | None = None
    """Seconds from its last byte until an upstream got it."""
    waited: float = 0.0
    """Seconds in a queue."""
    code: int = CLIENT_CLOSED_REQUEST
    span: Any = None
    service: Upstream | None = None
    """Where it is, if that is a service of ours."""


class Recorder:
    def __init__(self, metrics: Metrics, late: LateUsage, spans: Spans | None, write_lines: bool) -> None:
        self._metrics = metrics
        self._late = late
        self._spans = spans
        self._write_lines = write_lines

    def record(self, seen: Seen) -> None:
        """Called once for every request, when it is over."""
        exchange, code = seen.exchange, seen.code
        seconds = monotonic() - seen.arrived
        first_byte = exchange.first_byte_at - seen.arrived if exchange.first_byte_at else None
        cell = self._metrics.cell(seen.model, seen.endpoint, seen.upstream)
        cell.codes[code] = cell.codes.get(code, 0) + 1
        cell.latency.observe(seconds)
        if first_byte is not None:
            cell.first_byte.observe(first_byte)
        if seen.overhead is not None:
            cell.overhead.observe(seen.overhead)
        if seen.waited:
            cell.queue.observe(seen.waited)
        if code == CLIENT_CLOSED_REQUEST:
            cell.disconnects += 1
        cell.retries += seen.retries
        usage = self._count_usage(seen) if 200 <= exchange.status < 300 else {}
        if self._spans is not None and seen.span is not None:
            self._spans.end(seen, usage)
        if self._write_lines:
            self._write_line(seen, seconds, first_byte, usage)

    def _count_usage(self, seen: Seen) -> dict[str, float]:
        """What a service of ours could not tell on the way it is asked for; a stream of another server that does not
        tell its usage, or was left before it did, is counted in events."""
        exchange, who = seen.exchange, (seen.client.name, seen.model)
        usage = read_usage(exchange.headers, exchange.tail)
        events = {"events": float(exchange.events)} if exchange.events and not usage else {}
        is_untold = not usage and (exchange.tells_later or seen.code != exchange.status)
        if seen.service is not None and is_untold:
            self._metrics.use(*who, _ONE)
            self._late.ask(seen.service, exchange.request_id.decode(), events, partial(self._metrics.use, *who))
            return {}
        usage = usage or events
        self._metrics.use(*who, usage | _ONE)
        return usage

    def _write_line(self, seen: Seen, seconds: float, first_byte: float | None, usage: dict[str, float]) -> None:
        line: dict[str, Any] = {
            "request_id": seen.exchange.request_id.decode(),
            "service": "router",
            "method": seen.method,
            "path": seen.endpoint,
            "key": seen.client.name,
            "model": seen.model,
            "upstream": seen.upstream,
            "code": seen.code,
            "seconds": round(seconds, 4),
            "first_byte_seconds": None if first_byte is None else round(first_byte, 4),
            "queue_seconds": round(seen.waited, 4),
            "bytes": seen.exchange.bytes,
            "retries": seen.retries,
            "usage": usage,
        }
        access_log.info(msgspec.json.encode(line).decode())
