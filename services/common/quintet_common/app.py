"""The app that every service is: health, models, metrics, docs and errors, around the service's own routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from openai.types import Model

from quintet_common import metrics
from quintet_common.dialect import include_both
from quintet_common.error_handlers import install_error_handlers
from quintet_common.instrument import Instrument
from quintet_common.pool import ModelPool
from quintet_common.worker.process import State, Worker

MAX_BODY = 32 << 20
"""Bytes of a request body. Pictures in a chat and reference images are the largest honest bodies."""


def model_card(worker: Worker[Any]) -> dict[str, Any]:
    """One entry of ``/v1/models``: OpenAI's fields, then what the router and people want to know."""
    spec = worker.spec
    card = Model(id=spec.id, object="model", created=worker.created, owned_by=spec.owned_by).model_dump(
        exclude_unset=True
    )
    return card | {
        "kind": spec.kind,
        "aliases": spec.aliases,
        "default": spec.default,
        "state": worker.state.value,
        "progress": round(worker.progress, 3),
        "note": worker.note,
        **worker.info,
        **({"sampling": worker.sampling} if worker.sampling else {}),
    }


def create_app(service: str, pool: ModelPool[Any], routers: Sequence[APIRouter], max_body: int = MAX_BODY) -> FastAPI:
    """A service: ``pool``'s models are started with it and end with it. Routes find the pool in ``request.app.state``.

    ``/health`` is 200 while the process lives, ``/ready`` only when every model can answer.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        collector = metrics.WorkerCollector(service, pool)
        metrics.registry.register(collector)
        pool.start()
        try:
            yield
        finally:
            await pool.close()
            metrics.registry.unregister(collector)

    app = FastAPI(title=f"Quintet {service}", version="0.1.0", lifespan=lifespan, redoc_url=None)
    app.state.pool = pool
    install_error_handlers(app)
    app.add_middleware(Instrument, service=service, max_body=max_body)
    for router in routers:
        include_both(app, router)
    include_both(app, _models(pool))
    app.include_router(_operations(pool))
    return app


def _models(pool: ModelPool[Any]) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        """The models of this service, with their state: all are ``stopping`` once the service is about to end."""
        leaving = {"state": "stopping"} if pool.leaving else {}
        return {"object": "list", "data": [model_card(worker) | leaving for worker in pool]}

    @router.get("/models/{model:path}")
    async def retrieve_model(model: str) -> dict[str, Any]:
        """One model, by its id or an alias; ids may contain slashes."""
        found = next((worker for worker in pool if model in worker.spec.names), None)
        if found is None:
            raise pool.not_found(model)
        return model_card(found)

    return router


def _operations(pool: ModelPool[Any]) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """200 while the process lives; with the models that failed, and why."""
        failed = {worker.spec.id: worker.note for worker in pool if worker.state is State.FAILED}
        return {"status": "ok", **({"failed": failed} if failed else {})}

    @router.get("/ready")
    async def ready() -> Response:
        states = {worker.spec.id: worker.state.value for worker in pool}
        return JSONResponse({"ready": pool.ready, "models": states}, 200 if pool.ready else 503)

    @router.get("/metrics")
    async def expose_metrics() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
