"""What is kept of every finished request: numbers for Prometheus, a line for the access log, a span."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import monotonic
from typing import Any

import msgspec
from quintet_common.errors import CLIENT_CLOSED_REQUEST
from starlette.types import Scope

from quintet_router.access.keyring import ANYONE, Client
from quintet_router.exchange import Exchange
from quintet_router.metrics import Metrics
from quintet_router.spans import Spans
from quintet_router.usage import read_usage

access_log = logging.getLogger("quintet.access")


@dataclass(slots=True)
class Seen:
    """One request as it is told about afterwards. Times are of ``time.monotonic``."""

    endpoint: str
    scope: Scope
    exchange: Exchange
    arrived: float
    client: Client = ANYONE
    inside: bool = False
    """Whether the gate has let it in, and has to let it out."""
    model: str = ""
    upstream: str = ""
    retries: int = 0
    waited: float = 0.0
    """Seconds in a queue."""
    code: int = CLIENT_CLOSED_REQUEST
    span: Any = None


class Recorder:
    def __init__(self, metrics: Metrics, spans: Spans | None, write_lines: bool) -> None:
        self._metrics = metrics
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
        """A stream that does not tell its usage, or was left before it did, is counted in events."""
        exchange = seen.exchange
        usage = read_usage(exchange.headers, exchange.tail)
        if exchange.events and not usage:
            usage = {"events": float(exchange.events)}
        self._metrics.use(seen.client.name, seen.model, usage)
        return usage

    def _write_line(self, seen: Seen, seconds: float, first_byte: float | None, usage: dict[str, float]) -> None:
        line: dict[str, Any] = {
            "request_id": seen.exchange.request_id.decode(),
            "service": "router",
            "method": seen.scope["method"],
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
