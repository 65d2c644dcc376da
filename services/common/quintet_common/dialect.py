"""Which of two dialects a request speaks: strict OpenAI under ``/v1``, that of the ZLAI page on the bare paths.

This module decides; routes ask it and pass the answer down as a value. What the ZLAI dialect changes is listed in
``docs/dialects.md``.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request


class Dialect(Enum):
    OPENAI = "openai"
    ZLAI = "zlai"


def dialect_of(request: Request) -> Dialect:
    return Dialect.OPENAI if request.url.path.startswith("/v1/") else Dialect.ZLAI


RequestDialect = Annotated[Dialect, Depends(dialect_of)]
"""A route parameter of this type is the dialect of the request."""


def include_both(app: FastAPI, router: APIRouter) -> None:
    """Serve every route of ``router`` under ``/v1`` (documented) and on its bare path."""
    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)
