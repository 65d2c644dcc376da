"""The router's own answers, straight to ASGI."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from quintet_common.errors import ApiError
from starlette.types import Send

Headers = Sequence[tuple[bytes, bytes]]


async def send_json(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """``body`` is JSON already."""
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, headers: Headers = ()) -> None:
    own = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await send_json(send, error.status, msgspec.json.encode(error.body), [*own, *headers])


def unavailable(message: str, seconds: float) -> ApiError:
    """503 that tells the client when to come back: after ``seconds``, rounded up, at least 1."""
    return ApiError(503, message, code="upstream_unavailable", retry_after=max(1, -int(-seconds // 1)))
