"""The router's own answers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from quintet_common.errors import ApiError

from quintet_router.downstream import Downstream
from quintet_router.headers import Header


def send_error(request: Downstream, error: ApiError, headers: Sequence[Header] = ()) -> None:
    body = msgspec.json.encode(error.body)
    own = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *own, *headers]
    request.begin(error.status, head, body, True)


def unavailable(message: str, seconds: float) -> ApiError:
    """503 that tells the client when to come back: after ``seconds``, rounded up, at least 1."""
    return ApiError(503, message, code="upstream_unavailable", retry_after=max(1, -int(-seconds // 1)))
