"""The page ``/docs`` and the document that it shows. Nothing of it is fetched from elsewhere."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from quintet_router.fleet import Fleet
from quintet_router.openapi import merge
from quintet_router.upstream.upstream import Upstream

_DOCUMENT_SECONDS = 30.0
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Quintet</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/static/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/static/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});
</script>
</body>
</html>
"""


def add_documentation(app: FastAPI, fleet: Fleet, locked: bool) -> None:
    """``locked``: requests need a key, and the page offers to enter one."""
    documents = _Documents(fleet)
    app.mount("/docs/static", StaticFiles(directory=Path(__file__).parent / "static"))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        """One document for all services that answer now."""
        document = merge(await documents.fetch(), app.openapi())
        if locked:
            schemes = document["components"].setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
            document["security"] = [{"key": []}]
        return document

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_PAGE)


class _Documents:
    """The services' documents, asked for only when somebody reads them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}

    async def fetch(self) -> list[tuple[str, dict[str, Any]]]:
        """(service, document) of every upstream of ours; the last known one where it does not answer."""
        ours = [upstream for upstream in self._fleet.upstreams if upstream.ours]
        await asyncio.gather(*(self._refresh(upstream) for upstream in ours))
        self._known = {each.label: self._known[each.label] for each in ours if each.label in self._known}
        return [(_service_name(document), document) for _, document in self._known.values()]

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
