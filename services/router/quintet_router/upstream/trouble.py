"""Why an upstream's models cannot be told, in words for whoever has written its entry."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

import httpx2
import msgspec

TROUBLES = (httpx2.HTTPError, TimeoutError, msgspec.DecodeError)
"""What asking an upstream for its models may end with."""

SILENCE = (httpx2.TimeoutException, TimeoutError)


def reason(error: Exception, path: str, seconds: float, has_key: bool) -> str:
    """One of ``TROUBLES`` in words. ``path`` was asked for, for at most ``seconds``; ``has_key``: with a key."""
    if isinstance(error, SILENCE):
        return f"it does not answer within {seconds:g} s"
    if isinstance(error, httpx2.HTTPStatusError):
        return _refusal(error.response.status_code, path, has_key)
    if isinstance(error, httpx2.ConnectError):
        return _no_connection(error)
    if isinstance(error, msgspec.DecodeError):
        return f"what it answers to {path} is no list of models"
    return "it breaks the connection off" if isinstance(error, httpx2.NetworkError) else "it gives no answer in HTTP"


def _refusal(status: int, path: str, has_key: bool) -> str:
    if status in (401, 403):
        return f"it refuses the key ({status})" if has_key else f"it wants a key ({status})"
    if status in (404, 405):
        return f"it has no {path} ({status})"
    return f"it answers {status} to {path}"


def _no_connection(error: httpx2.ConnectError) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS"
        if isinstance(cause, socket.gaierror):
            return "its name has no address"
        if isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED:
            return "nothing listens there"
    return f"it cannot be reached: {error}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from; of several that came together, all."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _causes(each)
        error = error.__cause__ or error.__context__
