"""What is known of every request: its id, its time, its labels. One ASGI layer; it buffers nothing.

Adds ``x-request-id`` (the client's own, if it sent one), ``openai-version`` and ``openai-processing-ms`` to every
answer, refuses bodies over the limit with 413, counts, and writes one JSON line per request to the access log.
"""

from __future__ import annotations

import logging
import os
import re
import time

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quintet_common import metrics
from quintet_common.errors import CLIENT_CLOSED_REQUEST, error_body
from quintet_common.observation import KEY, Observation
from quintet_common.usage import HEADER, PATH, Telling, Untold

log = logging.getLogger("quintet")
access_log = logging.getLogger("quintet.access")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_UNCOUNTED = frozenset({"/health", "/ready", "/metrics"})
_POLLED = frozenset({"/v1/models", "/models"})
"""What routers ask every few seconds, which would bury all else in the log."""

FAILED = "The service failed on this request; its log has the details."


class Instrument:
    """Wraps a service's app. ``max_body`` is in bytes."""

    def __init__(self, app: ASGIApp, service: str, max_body: int) -> None:
        self._app = app
        self._service = service
        self._max_body = max_body
        self._untold = Untold()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["path"].startswith(PATH):
            return await JSONResponse(self._untold.take(scope["path"].removeprefix(PATH)))(scope, receive, send)
        seen = scope[KEY] = Observation(self._service)
        headers = dict(scope["headers"])
        sent_id = headers.get(b"x-request-id", b"")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else b"req_" + os.urandom(12).hex().encode()

        telling = Telling(seen) if HEADER in headers else None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.code = seen.code or message["status"]
                elapsed = int((time.perf_counter() - seen.started) * 1000)
                extra = [(b"x-request-id", request_id), (b"openai-version", b"2020-10-01")]
                extra.append((b"openai-processing-ms", str(elapsed).encode()))
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message if telling is None else telling.add(message))

        try:
            await self._app(scope, self._limited(receive, headers), send_with_headers)
        except ClientDisconnect:  # in the middle of its upload
            seen.code = CLIENT_CLOSED_REQUEST
        except Exception:
            # Once the answer has begun, returning without its end makes the server cut the connection.
            log.exception("%s %s failed", scope["method"], scope["path"])
            started, seen.code = bool(seen.code), 500
            if not started:
                await JSONResponse(error_body(500, FAILED), 500)(scope, receive, send_with_headers)
        finally:
            if telling is not None and not telling.told:
                self._untold.keep(request_id.decode(), seen.usage)
            self._record(scope, seen, request_id)

    def _limited(self, receive: Receive, headers: dict[bytes, bytes]) -> Receive:
        """``receive`` that raises a 413 once the body is over the limit, after reading it to its end.

        Answering earlier would make most clients see a reset connection instead of the error; what is read is dropped.
        An HTTPException, because FastAPI turns whatever else is raised while it reads a body into a 400.
        """
        length = headers.get(b"content-length", b"0")
        total = 0

        async def limited() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total <= self._max_body and not (total and length.isdigit() and int(length) > self._max_body):
                return message
            while message.get("more_body") and total < 16 * self._max_body:
                message = await receive()
                total += len(message.get("body", b""))
            raise HTTPException(413, f"The body is larger than {self._max_body >> 20} MiB.")

        return limited

    def _record(self, scope: Scope, seen: Observation, request_id: bytes) -> None:
        if scope["path"] in _UNCOUNTED:
            return
        seconds = time.perf_counter() - seen.started
        route = scope.get("route")
        seen.endpoint = getattr(route, "path", "").removeprefix("/v1") or "unknown"
        metrics.record(seen, seconds)
        level = logging.DEBUG if scope["path"] in _POLLED and seen.code == 200 else logging.INFO
        if access_log.isEnabledFor(level):
            line = {
                "request_id": request_id.decode(),
                "service": seen.service,
                "method": scope["method"],
                "path": scope["path"],
                "model": seen.model,
                "code": seen.code or CLIENT_CLOSED_REQUEST,
                "seconds": round(seconds, 4),
            }
            access_log.log(level, msgspec.json.encode(line).decode())
