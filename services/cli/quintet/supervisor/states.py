"""What the services say of their models, read from their ``/v1/models``."""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from typing import TypeVar

import msgspec

T = TypeVar("T")

TIMEOUT = 2.0
"""Seconds for one answer on loopback; a service that is slower is asked again later."""

SETTLED = frozenset({"ready", "failed", "idle"})
"""States that stay until something happens."""


class ModelState(msgspec.Struct, frozen=True):
    """One model as its service describes it. ``progress`` is 0 to 1."""

    id: str
    kind: str = ""
    engine: str = "auto"
    state: str = "loading"
    progress: float = 0.0
    note: str = ""

    @property
    def reason(self) -> str:
        """The note without the model's name, where that is said already."""
        return self.note.removeprefix(f"{self.id}: ")


class _List(msgspec.Struct):
    data: list[ModelState]


class UpstreamState(msgspec.Struct, frozen=True):
    """A server behind the router; ``trouble`` says why it cannot be used."""

    upstream: str
    url: str
    trouble: str | None = None
    models: list[object] = []


class _Upstreams(msgspec.Struct):
    upstreams: list[UpstreamState]


class _Ready(msgspec.Struct):
    models: dict[str, str]


# Proxies of the environment are for the internet, never for loopback.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class KeyNeeded(Exception):
    """The endpoint shows its models only to who has an API key."""


async def fetch(url: str) -> list[ModelState] | None:
    """The models at ``url``; None while nothing answers there. Raises KeyNeeded."""
    found = await asyncio.to_thread(_get, f"{url}/v1/models", _List)
    return None if found is None else found.data


async def fetch_upstreams(url: str) -> list[UpstreamState]:
    """The upstreams of the router at ``url``; none where it does not show them, as with keys."""
    try:
        found = await asyncio.to_thread(_get, f"{url}/admin/upstreams", _Upstreams)
    except KeyNeeded:
        return []
    return [] if found is None else found.upstreams


async def fetch_states(url: str) -> dict[str, str] | None:
    """The state of each model at ``url`` by its id, from ``/ready``, which services neither count nor log."""
    found = await asyncio.to_thread(_get, f"{url}/ready", _Ready)
    return None if found is None else found.models


def _get(url: str, what: type[T]) -> T | None:
    try:
        return msgspec.json.decode(_body(url), type=what)
    except (OSError, http.client.HTTPException, msgspec.MsgspecError):
        return None


def _body(url: str) -> bytes:
    try:
        with _open(url, timeout=TIMEOUT) as response:
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise KeyNeeded from None
        return error.read()  # 503 of /ready has the states, too
