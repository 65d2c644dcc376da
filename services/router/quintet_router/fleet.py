"""All upstreams: asks each for its models, again and again, and keeps the catalog."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any

import httpx2
import msgspec
from quintet_common.errors import ApiError
from quintet_common.models_yml import UpstreamSpec

from quintet_router.catalog import Catalog
from quintet_router.replies import unavailable
from quintet_router.settings import Settings
from quintet_router.upstream.breaker import Failure
from quintet_router.upstream.pool import tls_context
from quintet_router.upstream.upstream import Upstream

log = logging.getLogger("quintet.router")
_SETTLED = ("ready", "idle", "failed", None)


class _Card(msgspec.Struct):
    id: str
    kind: str | None = None
    default: bool = False
    aliases: list[str] | None = None
    state: str | None = None


class _Listing(msgspec.Struct):
    data: list[dict[str, Any]]


class Fleet:
    """``expected`` are names that models.yml promises: while an upstream has never answered, they may be its models."""

    def __init__(self, specs: list[UpstreamSpec], settings: Settings) -> None:
        self.catalog = Catalog()
        self.expected: frozenset[str] = frozenset()
        self.upstreams = [Upstream(spec, settings) for spec in specs]
        self._settings = settings
        self._pollers: dict[Upstream, _Poller] = {}
        self._started = 0.0
        self.client: httpx2.AsyncClient

    async def start(self) -> None:
        """Begin to ask, and wait a moment for the first answers."""
        self._started = monotonic()
        self.client = httpx2.AsyncClient(timeout=self._settings.poll_timeout, trust_env=False, verify=tls_context())
        self._follow()
        first = [poller.asked.wait() for poller in self._pollers.values()]
        try:
            async with asyncio.timeout(1):
                await asyncio.gather(*first)
        except TimeoutError:
            log.info("Not all upstreams have answered yet.")

    async def close(self) -> None:
        await asyncio.gather(*(poller.stop() for poller in self._pollers.values()))
        self._pollers.clear()
        for upstream in self.upstreams:
            upstream.close()
        await self.client.aclose()

    async def apply(self, specs: list[UpstreamSpec]) -> None:
        """Make the upstreams those of ``specs``. Unchanged ones keep their connections and what is known of them.

        Raises ValueError, with nothing changed, when a URL is none.
        """
        present = {upstream.spec.url: upstream for upstream in self.upstreams}
        wanted: list[Upstream] = []
        for spec in specs:
            known = present.get(spec.url)
            wanted.append(known if known is not None and known.spec == spec else Upstream(spec, self._settings))
        gone = [upstream for upstream in self.upstreams if upstream not in wanted]
        self.upstreams = wanted
        self._follow()
        await asyncio.gather(*(self._pollers.pop(upstream).stop() for upstream in gone))
        for upstream in gone:
            upstream.close()
        self.catalog.rebuild(self.upstreams)

    def ask_now(self, upstream: Upstream) -> None:
        """Something is wrong there: do not wait for the next turn."""
        poller = self._pollers.get(upstream)
        if poller is not None:
            poller.hurry.set()

    def may_come(self, name: str | None) -> ApiError | None:
        """503 when a model that is not in the catalog may be there soon: some upstream has never answered, and either
        the model is promised or it is early days."""
        early = monotonic() - self._started < self._settings.start_seconds
        if (early or name in self.expected) and any(upstream.cards is None for upstream in self.upstreams):
            return unavailable("Not all models are up yet.", 2)
        return None

    def changed(self) -> None:
        self.catalog.rebuild(self.upstreams)

    def _follow(self) -> None:
        for upstream in self.upstreams:
            if upstream not in self._pollers:
                self._pollers[upstream] = _Poller(upstream, self, self._settings)


class _Poller:
    """Asks one upstream for its models: every few seconds, every second while it is down or loading."""

    def __init__(self, upstream: Upstream, fleet: Fleet, settings: Settings) -> None:
        self._upstream = upstream
        self._fleet = fleet
        self._settings = settings
        self.hurry = asyncio.Event()
        self.asked = asyncio.Event()
        self._was_up: bool | None = None
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        settings = self._settings
        while True:
            self.hurry.clear()
            try:
                settled = await self._ask()
            except Exception:
                log.exception("Asking %s for its models failed.", self._upstream.label)
                settled = False
            self.asked.set()
            pause = settings.poll_seconds if settled else settings.poll_waiting_seconds
            try:
                async with asyncio.timeout(pause):
                    await self.hurry.wait()
                await asyncio.sleep(settings.poll_waiting_seconds / 10)  # many requests may fail at once
            except TimeoutError:
                pass

    async def _ask(self) -> bool:
        """Whether nothing is expected to change soon."""
        upstream = self._upstream
        key = upstream.spec.key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            response = await self._fleet.client.get(upstream.models_url, headers=headers)
            response.raise_for_status()
            cards = _read_cards(response.content)
        except httpx2.ConnectError as error:
            upstream.breaker.failed(Failure.CONNECT, monotonic())
            self._tell(False, str(error))
            return False
        except (httpx2.HTTPError, msgspec.DecodeError) as error:
            # Slow or confused, but there; requests decide whether it still answers them.
            self._tell(False, str(error) or type(error).__name__)
            return False
        if upstream.breaker.cause is Failure.CONNECT:
            upstream.breaker.succeeded()
        upstream.learn(cards, self._settings)
        self._tell(True, f"{len(upstream.cards or [])} models")
        return all(card.get("state") in _SETTLED for card in cards)

    def _tell(self, up: bool, detail: str) -> None:
        self._fleet.changed()
        if up != self._was_up:
            level, word = (logging.INFO, "up") if up else (logging.WARNING, "down")
            log.log(level, "%s is %s: %s", self._upstream.label, word, detail)
        self._was_up = up


def _read_cards(content: bytes) -> list[dict[str, Any]]:
    """The entries of a model list whose fields are of the right types. Raises msgspec.DecodeError."""
    cards = msgspec.json.decode(content, type=_Listing).data
    for card in cards:
        msgspec.convert(card, _Card)
    return cards
