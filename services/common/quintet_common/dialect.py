"""Which of two dialects a request speaks: strict OpenAI under ``/v1``, that of the ZLAI page on the bare paths.

This module decides; routes ask it and pass the answer down as a value. What the ZLAI dialect changes is listed in
``docs/dialects.md``.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request

from quintet_common.characters import half_in


class Dialect(Enum):
    OPENAI = "openai"
    ZLAI = "zlai"


def dialect_of(request: Request) -> Dialect:
    return Dialect.OPENAI if request.url.path.startswith("/v1/") else Dialect.ZLAI


RequestDialect = Annotated[Dialect, Depends(dialect_of)]
"""A route parameter of this type is the dialect of the request."""


async def refuse_halves(request: Request) -> None:
    """A dependency of every route: raises ApiError 400 that names the field of a JSON body with half a character."""
    if request.method != "POST" or "json" not in request.headers.get("content-type", "json"):
        return
    body = await request.body()
    # What is ASCII throughout, without escapes, needs no second look; NUL is in the ASCII of UTF-16 and UTF-32.
    if body.isascii() and b"\\u" not in body and b"\0" not in body:
        return
    try:
        parsed = await request.json()
    except (ValueError, RecursionError):  # of another type than that of JSON; the route says what it thinks of it
        return
    if (error := half_in(parsed)) is not None:
        raise error


def include_both(app: FastAPI, router: APIRouter) -> None:
    """Serve every route of ``router`` under ``/v1`` (documented) and on its bare path."""
    whole = [Depends(refuse_halves)]
    app.include_router(router, prefix="/v1", dependencies=whole)
    app.include_router(router, include_in_schema=False, dependencies=whole)
