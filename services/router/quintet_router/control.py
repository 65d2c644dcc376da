"""Everything that is not forwarded: the models, the router's health, its metrics and its documentation."""

from __future__ import annotations

import asyncio
import re
from time import monotonic
from typing import Any

import httpx2
from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from quintet_common.error_handlers import install_error_handlers
from quintet_common.errors import model_not_found

from quintet_router.fleet import Fleet
from quintet_router.metrics import Metrics
from quintet_router.openapi import merge
from quintet_router.upstream.upstream import Upstream

_DOCUMENT_SECONDS = 30.0


def create_control(fleet: Fleet, metrics: Metrics) -> FastAPI:
    """The FastAPI app beside the hot path."""
    app = FastAPI(
        title="Quintet",
        version="0.1.0",
        description="One OpenAI-compatible endpoint over all models.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)
    _add_models(app, fleet)
    _add_operations(app, fleet, metrics)
    _add_documentation(app, fleet)
    return app


def _add_models(app: FastAPI, fleet: Fleet) -> None:
    async def list_models() -> Response:
        """Every model of every upstream, with its kind and state."""
        return Response(fleet.catalog.listing, media_type="application/json")

    async def retrieve_model(model: str) -> dict[str, Any]:
        """One model, by its id or an alias; ids may contain slashes."""
        found = fleet.catalog.find(model)
        if found is None:
            raise fleet.may_come(model) or model_not_found(model)
        return found.card

    for prefix in ("/v1", ""):
        shown = bool(prefix)
        app.get(f"{prefix}/models", tags=["models"], include_in_schema=shown)(list_models)
        app.get(f"{prefix}/models/{{model:path}}", tags=["models"], include_in_schema=shown)(retrieve_model)


def _add_operations(app: FastAPI, fleet: Fleet, metrics: Metrics) -> None:
    @app.get("/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        """200 while the router lives, whatever its upstreams do."""
        return {"status": "ok"}

    @app.get("/ready", include_in_schema=False)
    async def ready() -> Response:
        """200 once an upstream can be reached: one that is down must not take the others' router away."""
        reachable = [upstream.cards is not None and upstream.breaker.reachable for upstream in fleet.upstreams]
        states = {model.id: model.card.get("state", "ready") for model in fleet.catalog}
        counts = {"all": len(reachable), "up": sum(reachable)}
        status = 200 if any(reachable) else 503
        return JSONResponse({"ready": status == 200, "upstreams": counts, "models": states}, status)

    @app.get("/metrics", include_in_schema=False)
    async def expose_metrics() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_documentation(app: FastAPI, fleet: Fleet) -> None:
    documents = _Documents(fleet)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        """One document for all services that answer now."""
        return merge(await documents.fetch(), app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="/openapi.json", title="Quintet")


class _Documents:
    """The services' documents, asked for only when somebody reads them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}

    async def fetch(self) -> list[tuple[str, dict[str, Any]]]:
        """(service, document) of every upstream of ours; the last known one where it does not answer."""
        ours = [upstream for upstream in self._fleet.upstreams if upstream.ours]
        await asyncio.gather(*(self._refresh(upstream) for upstream in ours))
        found = [self._known[upstream.label][1] for upstream in ours if upstream.label in self._known]
        return [(_service_name(document), document) for document in found]

    async def _refresh(self, upstream: Upstream) -> None:
        fetched, _ = self._known.get(upstream.label, (-_DOCUMENT_SECONDS, {}))
        if monotonic() - fetched < _DOCUMENT_SECONDS:
            return
        try:
            response = await self._fleet.client.get(upstream.openapi_url)
            document = response.raise_for_status().json()
        except (httpx2.HTTPError, ValueError):
            return
        if isinstance(document, dict):
            self._known[upstream.label] = (monotonic(), document)


def _service_name(document: dict[str, Any]) -> str:
    """``Quintet embed`` -> ``embed``; only what a component's name may hold."""
    title = str(document.get("info", {}).get("title", ""))
    return re.sub(r"[^A-Za-z0-9._-]", "_", title.split()[-1] if title.split() else "service")
