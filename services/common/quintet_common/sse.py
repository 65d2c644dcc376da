"""Server-sent events as OpenAI sends them: ``data: {json}`` and a blank line each, ``data: [DONE]`` at the end."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import msgspec
from pydantic import BaseModel

from quintet_common.disconnect import StreamResponse
from quintet_common.errors import ApiError

DONE = b"data: [DONE]\n\n"
_BREAKS = re.compile(b"\xc2\x85|\xe2\x80[\xa8\xa9]")
"""What some clients take for the end of a line, though the standard of events does not: U+0085, U+2028 and U+2029."""

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: BaseModel | dict[str, object], name: str | None = None) -> bytes:
    """One event. A model is written without the fields that were never set; ``name`` adds an ``event:`` line."""
    if isinstance(data, BaseModel):
        payload = data.model_dump_json(exclude_unset=True, by_alias=True).encode()
    else:
        payload = msgspec.json.encode(data)
    if _BREAKS.search(payload):
        payload = _BREAKS.sub(lambda found: f"\\u{ord(found[0].decode()):04x}".encode(), payload)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + payload + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """A failure in the middle of a stream; every OpenAI SDK raises on a top-level ``error`` key."""
    return event(error.body)


def sse_response(events: AsyncIterator[bytes]) -> StreamResponse:
    """Stream events that are written already; an ApiError on the way becomes an error event, then the stream ends."""
    return StreamResponse(events, "text/event-stream", dict(_HEADERS), on_error=error_event)
