"""Every error of a FastAPI app in OpenAI's shape; no stack trace leaves the service."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from quintet_common.errors import ApiError, error_body, validation_error

log = logging.getLogger("quintet")


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
    messages = {404: f"Unknown path: {request.url.path}.", 405: f"{request.method} is not allowed on this path."}
    message = messages.get(exc.status_code, str(exc.detail))
    code = "body_too_large" if exc.status_code == 413 else None
    return JSONResponse(error_body(exc.status_code, message, code=code), exc.status_code, dict(exc.headers or {}))


async def _unexpected(request: Request, exc: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return JSONResponse(error_body(500, "The service failed on this request; its log has the details."), 500)


def install_error_handlers(app: FastAPI) -> None:
    """Give every error of ``app`` OpenAI's shape; no stack trace leaves the service."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
