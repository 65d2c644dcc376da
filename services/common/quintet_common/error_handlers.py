"""What a FastAPI app refuses, in OpenAI's shape. Unexpected failures are the Instrument's (see instrument.py)."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from quintet_common.errors import ApiError, error_body, validation_error


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


async def _api_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, ApiError)
    return error_response(exc)


async def _validation_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    return error_response(validation_error(exc.errors(), exc.body))


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    messages = {404: _unknown_path(request), 405: f"{request.method} is not allowed on this path."}
    message = messages.get(exc.status_code, str(exc.detail))
    code = "body_too_large" if exc.status_code == 413 else None
    return JSONResponse(error_body(exc.status_code, message, code=code), exc.status_code, dict(exc.headers or {}))


def _unknown_path(request: Request) -> str:
    """Through the router, this is what asking a model of the wrong kind comes to: its service lacks the path."""
    kinds = sorted({worker.spec.kind for worker in getattr(request.app.state, "pool", ())})
    listed = f"what models of kind {' or '.join(map(repr, kinds))} answer" if kinds else "what there is"
    return f"Unknown path: {request.url.path}. /docs lists {listed}."


def install_error_handlers(app: FastAPI) -> None:
    """Give whatever ``app`` refuses OpenAI's shape."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
