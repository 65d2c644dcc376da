"""Everything that is not forwarded: the models, the router's health, its metrics and its documentation."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from quintet_common.error_handlers import install_error_handlers

from quintet_router.access.gate import Gate, check_model, no_model
from quintet_router.access.keyring import Client
from quintet_router.admin import add_admin
from quintet_router.departure import Departure
from quintet_router.documentation import add_documentation
from quintet_router.fleet import Fleet
from quintet_router.metrics import Metrics


def create_control(fleet: Fleet, metrics: Metrics, gate: Gate, departure: Departure, open_metrics: bool) -> FastAPI:
    """The FastAPI app beside the hot path. ``open_metrics``: ``/metrics`` needs no key, whatever else does."""
    app = FastAPI(
        title="Quintet",
        version="0.1.0",
        description="One OpenAI-compatible endpoint over all models.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)
    _add_models(app, fleet, gate)
    _add_health(app, fleet, gate, departure)
    _add_metrics(app, metrics, gate, open_metrics)
    add_admin(app, fleet, gate)
    add_documentation(app, fleet, gate.locked)
    return app


def _add_models(app: FastAPI, fleet: Fleet, gate: Gate) -> None:
    async def list_models(request: Request) -> Response:
        """Every model that the caller may use, with its kind and state."""
        client = _client(gate, request)
        listing = fleet.catalog.listing
        if client.restricted:
            cards = [model.card for model in fleet.catalog if client.may_use(model.id, model.aliases)]
            listing = msgspec.json.encode({"object": "list", "data": cards})
        return Response(listing, media_type="application/json")

    async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
        """One model, by its id or an alias; ids may contain slashes."""
        client = _client(gate, request)
        found = fleet.catalog.find(model)
        if found is None:
            error = (fleet.left_out_of(model) or fleet.may_come(model)) if client.may_use(model) else None
            raise error or no_model(client, model, fleet.catalog.names)
        check_model(client, found.id, found.aliases, model)
        return found.card

    for prefix in ("/v1", ""):
        shown = bool(prefix)
        app.get(f"{prefix}/models", tags=["models"], include_in_schema=shown)(list_models)
        app.get(f"{prefix}/models/{{model:path}}", tags=["models"], include_in_schema=shown)(retrieve_model)


def _add_health(app: FastAPI, fleet: Fleet, gate: Gate, departure: Departure) -> None:
    @app.get("/health", include_in_schema=False)
    async def health() -> dict[str, Any]:
        """200 while the router lives, whatever its upstreams do; with the models that failed, and the upstreams that
        cannot be used and why."""
        failed = [model.id for model in fleet.catalog if model.card.get("state") == "failed"]
        troubles = {upstream.label: upstream.trouble for upstream in fleet.upstreams if upstream.trouble}
        told = {} if gate.locked else {"failed": failed, "upstreams": troubles}
        return {"status": "ok", **{name: what for name, what in told.items() if what}}

    @app.get("/ready", include_in_schema=False)
    async def ready() -> Response:
        """200 once an upstream can be reached: one that is down must not take the others' router away."""
        reachable = [upstream.cards is not None and upstream.breaker.reachable for upstream in fleet.upstreams]
        status = 200 if any(reachable) and not departure.begun else 503
        answer: dict[str, Any] = {
            "ready": status == 200,
            "stopping": departure.begun,
            "upstreams": {"all": len(reachable), "up": sum(reachable)},
        }
        if not gate.locked:  # whoever probes has no key, and only keys tell which models one may know of
            answer["models"] = {model.id: model.card.get("state", "ready") for model in fleet.catalog}
        return JSONResponse(answer, status)


def _add_metrics(app: FastAPI, metrics: Metrics, gate: Gate, is_open: bool) -> None:
    @app.get("/metrics", include_in_schema=False)
    async def expose_metrics(request: Request) -> Response:
        if not is_open and gate.locked:
            gate.check_admin(request.scope)
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _client(gate: Gate, request: Request) -> Client:
    """Raises ApiError 401."""
    return gate.identify(dict(request.scope["headers"]))
