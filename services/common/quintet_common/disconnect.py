"""Clients that leave. uvicorn drops what is sent to one silently, so only ``receive()`` tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quintet_common.errors import CLIENT_CLOSED_REQUEST, ApiError
from quintet_common.observation import observation_of

T = TypeVar("T")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def or_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled as soon as the client leaves (then raises ApiError 499)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(CLIENT_CLOSED_REQUEST, "The client left.")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class StreamResponse(Response):
    """A body that is sent as it is made, and that is no longer made once the client has left.

    The headers go out at once. ``on_error`` turns an ApiError in the middle into last bytes; without it the answer is
    left unfinished and the server cuts the connection, which is the only honest end of a broken audio file. The
    iterator is always closed.
    """

    def __init__(
        self,
        body: AsyncIterator[bytes],
        media_type: str,
        headers: dict[str, str] | None = None,
        on_error: Callable[[ApiError], bytes] | None = None,
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["content-length"]
        self._body = body
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        produce = asyncio.ensure_future(self._produce(scope, send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({produce, gone}, return_when=asyncio.FIRST_COMPLETED)
            if produce.done():
                produce.result()
            else:
                observation_of(scope).code = CLIENT_CLOSED_REQUEST
        finally:
            gone.cancel()
            produce.cancel()
            await asyncio.gather(produce, gone, return_exceptions=True)

    async def _produce(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._body) as body:  # type: ignore[type-var]  # async generators in all of our uses
            try:
                async for chunk in body:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except ApiError as error:
                observation_of(scope).code = error.status
                if self._on_error is None:
                    return
                await send({"type": "http.response.body", "body": self._on_error(error), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
