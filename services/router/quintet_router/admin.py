"""What an operator may look at: the upstreams, as the router sees them now."""

from __future__ import annotations

from time import monotonic
from typing import Any

from fastapi import FastAPI, Request

from quintet_router.access.gate import Gate
from quintet_router.fleet import Fleet
from quintet_router.upstream.upstream import Upstream


def add_admin(app: FastAPI, fleet: Fleet, gate: Gate) -> None:
    """``GET /admin/upstreams``, for keys with admin rights."""

    @app.get("/admin/upstreams", include_in_schema=False)
    async def upstreams(request: Request) -> dict[str, Any]:
        gate.check_admin(request.scope)
        return {"upstreams": [describe(upstream, monotonic()) for upstream in fleet.upstreams]}


def describe(upstream: Upstream, now: float) -> dict[str, Any]:
    """``state`` is down when nothing answers there; ``trouble`` says why it does not tell its models now, null where it
    does; ``first_byte_seconds`` is a moving average, null before the first."""
    breaker, cards = upstream.breaker, upstream.cards
    known = cards is not None
    return {
        "upstream": upstream.label,
        "url": upstream.url,
        "service": "quintet" if upstream.ours else "other",
        "state": "unknown" if not known else "up" if breaker.reachable else "down",
        "trouble": upstream.trouble,
        "in_flight": upstream.outstanding,
        "max_concurrent": upstream.limit,
        "idle_connections": len(upstream.pool.idle),
        "breaker": {
            "state": breaker.state,
            "cause": None if breaker.cause is None else breaker.cause.value,
            "retry_seconds": round(max(0.0, breaker.until - now), 1),
        },
        "first_byte_seconds": round(upstream.first_byte_seconds, 4) or None,
        "models": [{"id": upstream.spec.prefix + card["id"], "state": card.get("state")} for card in cards or []],
    }
