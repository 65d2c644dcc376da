"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, all four keys, always."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LIKENESS, _LONGEST = 0.8, 200
"""How alike two names of models must be for one to be meant by the other, and the longest that is looked at."""

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left before the answer; seen only in metrics and logs."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


LOADING = "model_loading"
"""The code of the 503 of a model that will answer in a moment."""

LOADING_HEADER = "x-model-loading"
"""A header of that answer, by which the router knows it before its body: it waits then, in place of the client."""


class ApiError(Exception):
    """An error that the client is told about as it is.

    ``param`` names the request field, written as a path: ``messages[0].content``. ``retry_after`` is in seconds and
    becomes a ``Retry-After`` header. ``retry=False`` tells the OpenAI SDK not to try again by itself.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.retry = retry

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of an error response, also the payload of a mid-stream ``data:`` error event."""
        return error_body(self.status, self.message, param=self.param, code=self.code)

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.code == LOADING:
            headers[LOADING_HEADER] = "true"
        if self.retry is not None:
            headers["x-should-retry"] = "true" if self.retry else "false"
        return headers


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object for an HTTP status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def model_not_found(model: str, names: Iterable[str] = ()) -> ApiError:
    """404; with the one of ``names`` that may have been meant."""
    folded = {_folded(name): name for name in names}
    near = difflib.get_close_matches(_folded(model), list(folded), 1, _LIKENESS) if len(model) <= _LONGEST else []
    end = f"; did you mean {folded[near[0]]!r}?" if near else "."
    return ApiError(404, f"The model {model!r} does not exist{end}", param="model", code="model_not_found")


def _folded(name: str) -> str:
    return name.casefold().replace("_", "-")


def missing_field(path: str) -> ApiError:
    """400 for a field that a request needs and has not."""
    return bad_request(f"Missing required field: {path}.", path, "missing_required_parameter")


def param_path(location: Sequence[str | int]) -> str:
    """A pydantic location as OpenAI writes fields: ``("messages", 0, "content")`` -> ``messages[0].content``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def validation_error(errors: Sequence[Mapping[str, Any]], body: Any = None) -> ApiError:
    """One of pydantic's errors about ``body`` as a 400 that names its field.

    Of several, the deepest in the body: of a union, pydantic reports every member, and the member that was meant is the
    one that fits furthest.
    """
    if errors[0]["type"] == "json_invalid":
        return bad_request(f"The body is not valid JSON: {errors[0].get('ctx', {}).get('error', 'cannot be parsed')}.")
    located = [(_in_body(error, body), error) for error in errors]
    location, first = max(located, key=lambda pair: len(pair[0]))
    if not location and first["type"] == "value_error":  # of a validator over the whole body
        return bad_request(f"{first['msg'].removeprefix('Value error, ')}.")
    if not location:
        return bad_request("The body must be a JSON object, sent with Content-Type: application/json.")
    path = param_path(location)
    if first["type"] == "missing":
        return missing_field(path)
    return bad_request(f"Invalid value for {path}: {_plain(first)}.", path, "invalid_value")


def _plain(error: Mapping[str, Any]) -> str:
    """What pydantic says is wrong, in words for those who send JSON and know no Python."""
    if error["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return "Input should be an object"
    text: str = error["msg"]
    return text.removeprefix("Value error, ").replace(" after validation", "")


def _in_body(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """An error's location without what is not in the client's JSON: names of union members and discriminator tags.

    A missing field is not in the JSON either, but stays.
    """
    location = [part for part in error["loc"] if part != "body"]
    path: list[str | int] = []
    last = len(location) - 1
    for position, part in enumerate(location):
        if isinstance(part, int):
            inside = isinstance(body, list) and part < len(body)
        else:
            inside = isinstance(body, dict) and part in body
        if inside:
            path.append(part)
            body = body[part]
        elif position == last and error["type"] == "missing":
            path.append(part)
    return path
