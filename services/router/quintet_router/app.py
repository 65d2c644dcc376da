"""The router as a whole: forwarded paths take the hot path, all others go to a small FastAPI app beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from quintet_common.errors import ApiError
from quintet_common.models_yml import UpstreamSpec
from starlette.types import Receive, Scope, Send

from quintet_router.access.gate import Gate
from quintet_router.asgi import Exchanged
from quintet_router.control import create_control
from quintet_router.cors import Cors
from quintet_router.departure import Departure, stopping
from quintet_router.downstream import Downstream
from quintet_router.driven import in_task
from quintet_router.fleet import Fleet
from quintet_router.headers import Header, request_id
from quintet_router.metrics import Metrics
from quintet_router.paths import FORWARDED, find_path
from quintet_router.proxy import Proxy
from quintet_router.replies import send_error
from quintet_router.settings import Settings
from quintet_router.spans import Spans

log = logging.getLogger("quintet.router")


class Router:
    """``answer`` is one request. Called as an ASGI app it knows only when the server starts and stops.

    ``specs``: the upstreams to begin with; ``gate``: who gets in, by default everyone; ``spans``: where traces go.

    Raises ValueError for a URL that is none, and an origin that is none.
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
        self._cors = Cors(settings.cors) if settings.cors else None
        self._control = create_control(self.fleet, self.metrics, self.gate, self.departure, settings.open_metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)

    def answer(self, request: Downstream) -> Coroutine[Any, Any, None]:
        if self._cors is not None and self._cors.allow(request):
            return self._cors.answer(request)
        if self.departure.begun:
            request.keep_alive = False
            if self.departure.closed:
                return _refuse(request, stopping())
        path = FORWARDED.get(request.raw_path) or find_path(request.path)
        if path is None:
            return in_task(self._beside(request))
        return self._proxy(path, request)

    async def _beside(self, request: Downstream) -> None:
        limits = await self.gate.limits(request.fields)
        await Exchanged(request, [_own_id(request), *limits]).run(self._control)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.fleet.start()
        background = [asyncio.create_task(self._proxy.watch()), asyncio.create_task(self.metrics.watch_loop())]
        background.append(asyncio.create_task(self.gate.watch()))
        background += [asyncio.create_task(work()) for work in self.background]
        for task in background:
            task.add_done_callback(_tell_if_it_failed)
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


def _tell_if_it_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("What runs beside the requests has ended.", exc_info=error)


async def _refuse(request: Downstream, error: ApiError) -> None:
    send_error(request, error, [_own_id(request)])


def _own_id(request: Downstream) -> Header:
    return (b"x-request-id", request_id(request.fields))
