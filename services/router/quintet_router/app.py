"""The router as one ASGI app: forwarded paths take the hot path, all others go to a small FastAPI app beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from quintet_common.errors import ApiError
from quintet_common.models_yml import UpstreamSpec
from starlette.types import Message, Receive, Scope, Send

from quintet_router.access.gate import Gate
from quintet_router.control import create_control
from quintet_router.departure import CLOSE, Departure, closing
from quintet_router.downstream import KEY, Downstream
from quintet_router.fleet import Fleet
from quintet_router.headers import request_id
from quintet_router.metrics import Metrics
from quintet_router.paths import find_path
from quintet_router.proxy import Proxy
from quintet_router.replies import send_error
from quintet_router.settings import Settings
from quintet_router.spans import Spans


class Router:
    """The ASGI callable. ``specs``: the upstreams to begin with; ``gate``: who gets in, by default everyone; ``spans``:
    where traces go.

    Raises ValueError for a URL that is none.
    """

    def __init__(
        self,
        specs: list[UpstreamSpec],
        settings: Settings | None = None,
        gate: Gate | None = None,
        spans: Spans | None = None,
    ) -> None:
        settings = settings or Settings()
        self.gate = gate or Gate()
        self.departure = Departure()
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What is to run beside the requests, until the end."""
        self.fleet = Fleet(specs, settings)
        self.metrics = Metrics(lambda: [*self.fleet.upstreams, *self.fleet.leaving])
        self._proxy = Proxy(self.fleet, self.metrics, self.gate, settings, spans)
        self._spans = spans
        self._control = create_control(self.fleet, self.metrics, self.gate, self.departure, settings.open_metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] != "http":
            return None
        if self.departure.begun:
            if self.departure.closed:
                return await send_error(send, self.departure.refusal(), [CLOSE, _own_id(scope)])
            downstream: Downstream | None = scope.get("extensions", {}).get(KEY)
            if downstream is None:
                send = closing(send)
            else:
                downstream.close_after()
        path = find_path(scope["path"])
        if path is None:
            return await self._answer(scope, receive, send)
        if scope["method"] != path.method:
            error = ApiError(405, f"{scope['method']} is not allowed on this path.")
            return await send_error(send, error, [(b"allow", path.method.encode()), _own_id(scope)])
        return await self._proxy(path, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        own_id = _own_id(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], own_id]}
            await send(message)

        await self._control(scope, receive, send_with_id)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.fleet.start()
        background = [asyncio.create_task(self._proxy.watch()), asyncio.create_task(self.metrics.watch_loop())]
        if self.gate.keyring is not None:
            background.append(asyncio.create_task(self.gate.keyring.watch()))
        background += [asyncio.create_task(work()) for work in self.background]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self.gate.close()
        if self._spans is not None:
            await self._spans.close()
        await self.fleet.close()
        await send({"type": "lifespan.shutdown.complete"})


def _own_id(scope: Scope) -> tuple[bytes, bytes]:
    return (b"x-request-id", request_id(dict(scope["headers"])))
