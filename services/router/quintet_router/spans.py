"""One OpenTelemetry span for each forwarded request, when an endpoint for them is configured.

Imports OpenTelemetry only when it is used; without it the trace context of a request passes on as it came.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from quintet_router.recorder import Seen

_PATH = "/v1/traces"
_ENVIRONMENT = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TIMEOUT = 3.0
_TOKENS = {"prompt_tokens": "gen_ai.usage.input_tokens", "completion_tokens": "gen_ai.usage.output_tokens"}


class Spans:
    """``exporter`` gets the spans. Sampling and resource attributes are as OpenTelemetry's environment says."""

    def __init__(self, exporter: Any) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME", "quintet-router")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("quintet_router")
        self._context = TraceContextTextMapPropagator()
        self._server = SpanKind.SERVER
        self._failed = StatusCode.ERROR

    def start(self, method: str, endpoint: str, fields: dict[bytes, bytes]) -> Any:
        """The span of a request with these headers, a child of the caller's if there is one."""
        names = ("traceparent", "tracestate")
        carrier = {name: fields[name.encode()].decode("latin-1") for name in names if name.encode() in fields}
        return self._tracer.start_span(f"{method} {endpoint}", self._context.extract(carrier), self._server)

    def header(self, span: Any) -> bytes:
        """The line of a request's head that makes the upstream's spans children of this one."""
        context = span.get_span_context()
        return b"traceparent: 00-%032x-%016x-%02x\r\n" % (context.trace_id, context.span_id, context.trace_flags)

    def end(self, seen: Seen, usage: dict[str, float]) -> None:
        span = seen.span
        if span.is_recording():
            span.set_attributes(
                {
                    "http.request.method": seen.method,
                    "http.route": seen.endpoint,
                    "http.response.status_code": seen.code,
                    "gen_ai.request.model": seen.model,
                    "server.address": seen.upstream,
                    "quintet.key": seen.client.name,
                    "quintet.request_id": seen.exchange.request_id.decode(),
                    "quintet.retries": seen.retries,
                    "quintet.queue_seconds": seen.waited,
                    **{_TOKENS.get(unit, f"quintet.usage.{unit}"): amount for unit, amount in usage.items()},
                }
            )
            if seen.exchange.first_byte_at:
                span.set_attribute("quintet.first_byte_seconds", seen.exchange.first_byte_at - seen.arrived)
            if seen.code >= 500:
                span.set_status(self._failed)
        span.end()

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)


def endpoint_from(option: str | None) -> str | None:
    """Where spans go: what is configured here, else what OpenTelemetry's environment says. Raises ValueError."""
    url = option or next((os.environ[name] for name in _ENVIRONMENT if os.environ.get(name)), None)
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--traces is like http://host:4318, not {url!r}")
    return url if parts.path.rstrip("/") else url.rstrip("/") + _PATH


def spans_to(url: str) -> Spans:
    """Spans sent to an OTLP endpoint over HTTP. Raises ImportError when the extra ``otel`` is not installed."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Spans(OTLPSpanExporter(endpoint=url, timeout=_TIMEOUT))
