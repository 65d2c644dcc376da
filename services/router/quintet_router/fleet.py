"""All upstreams: asks each for its models, again and again, and keeps the catalog."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from math import inf
from time import monotonic
from typing import Any

import httpx2
import msgspec
from quintet_common.errors import ApiError
from quintet_common.models_yml import UpstreamSpec

from quintet_router.catalog import Catalog
from quintet_router.discovery import Watch, resolve
from quintet_router.replies import unavailable
from quintet_router.settings import Settings
from quintet_router.upstream.breaker import Failure
from quintet_router.upstream.pool import Address, tls_context
from quintet_router.upstream.trouble import SILENCE, TROUBLES, reason
from quintet_router.upstream.upstream import Upstream

log = logging.getLogger("quintet.router")
_FIRST_ANSWERS = 1.0
"""Seconds that those which are new get to say what they serve."""
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
    """``expected`` are names that models.yml promises: while an upstream has never answered, they may be its models.
    ``left_out`` are others that it has, with their kinds, which are not served here.

    Raises ValueError for a URL that is none.
    """

    def __init__(self, specs: list[UpstreamSpec], settings: Settings) -> None:
        _check(specs)
        self.catalog = Catalog()
        self.expected: frozenset[str] = frozenset()
        self.left_out: Mapping[str, str] = {}
        self.upstreams: list[Upstream] = []
        self.leaving: list[Upstream] = []
        """Those that were taken out and have requests to end."""
        self._specs = specs
        self._settings = settings
        self._watches: dict[str, Watch] = {}
        self._addresses: dict[str, frozenset[str]] = {}
        self._known: dict[str, frozenset[str]] = {}
        """By URL of those whose name had no address once: the models that they had before."""
        self._pollers: dict[Upstream, _Poller] = {}
        self._changing = asyncio.Lock()
        self._started = 0.0
        self._reloaded = -inf
        self.client: httpx2.AsyncClient
        for spec, ip in self._wanted():
            self.upstreams.append(self._upstream(spec, ip))

    async def start(self) -> None:
        """Begin to ask, and wait a moment for the first answers."""
        self._started = monotonic()
        tls = tls_context(self._settings.ca_file)
        self.client = httpx2.AsyncClient(timeout=self._settings.poll_timeout, trust_env=False, verify=tls)
        self._watch_names()
        pollers = [self._follow(upstream) for upstream in self.upstreams]
        try:
            async with asyncio.timeout(_FIRST_ANSWERS):
                asked = [each.asked for each in pollers] + [each.asked for each in self._watches.values()]
                await asyncio.gather(*(event.wait() for event in asked))
        except TimeoutError:
            log.info("Not all upstreams have answered yet.")

    async def close(self) -> None:
        await asyncio.gather(*(watch.stop() for watch in self._watches.values()))
        await asyncio.gather(*(poller.stop() for poller in self._pollers.values()))
        self._watches.clear()
        self._pollers.clear()
        for upstream in self.upstreams:
            upstream.close()
        await self.client.aclose()

    async def apply(
        self,
        specs: list[UpstreamSpec],
        expected: frozenset[str] = frozenset(),
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        """Make the upstreams those of ``specs``, and the promised names those of ``expected``. Unchanged upstreams keep
        their connections and what is known of them.

        Raises ValueError, with nothing changed, when a URL is none.
        """
        _check(specs)
        async with self._changing:
            self.left_out = left_out or {}
            self._specs, self.expected = specs, expected  # before the swap, which wakes those that wait for a model
            names = {spec.url for spec in specs if spec.dns}
            for url in self._watches.keys() - names:
                await self._watches.pop(url).stop()
                self._addresses.pop(url, None)
                self._known.pop(url, None)
            self._watch_names()
            await self._change()
            self._reloaded = monotonic()
            for poller in self._pollers.values():
                poller.hurry.set()

    async def _resolved(self, spec: UpstreamSpec, addresses: frozenset[str]) -> None:
        async with self._changing:
            self._addresses[spec.url] = addresses
            if not addresses:
                mine = [upstream for upstream in self.upstreams if upstream.spec.url == spec.url]
                names = {each.spec.prefix + card["id"] for each in mine for card in each.cards or []}
                # ``spec`` may be of before a reload.
                aliases = [each.aliases for each in self._specs if each.url == spec.url]
                self._known[spec.url] = frozenset(names).union(*aliases)
            await self._change()

    def _wanted(self) -> Iterator[tuple[UpstreamSpec, str | None]]:
        for spec in self._specs:
            if spec.dns:
                yield from ((spec, ip) for ip in sorted(self._addresses.get(spec.url, ())))
            else:
                yield spec, None

    async def _change(self) -> None:
        """Take over what is wanted now, all at once, after a moment for the new ones to say what they serve."""
        present = {(upstream.spec.url, upstream.ip): upstream for upstream in self.upstreams}
        wanted: list[Upstream] = []
        new: list[_Poller] = []
        changed: list[tuple[Upstream, Upstream]] = []
        for spec, ip in self._wanted():
            known = present.get((spec.url, ip))
            if known is None or known.spec != spec:
                before, known = known, self._upstream(spec, ip, wanted)
                new.append(self._follow(known))
                changed += [(known, before)] if before is not None else []
            wanted.append(known)
        try:
            async with asyncio.timeout(_FIRST_ANSWERS):
                await asyncio.gather(*(poller.asked.wait() for poller in new))
        except TimeoutError:
            log.info("Not all new upstreams have answered yet.")
        for known, before in changed:
            known.inherit(before, self._settings)
        gone = [upstream for upstream in self.upstreams if upstream not in wanted]
        self.upstreams = wanted
        for upstream in gone:
            upstream.close()
        self.leaving += gone
        self.catalog.rebuild(self.upstreams)
        await asyncio.gather(*(self._pollers.pop(upstream).stop() for upstream in gone))

    def tick(self, now: float) -> None:
        """Close connections that nobody uses, and forget upstreams that have left."""
        for upstream in self.upstreams:
            upstream.pool.expire(now)
        if self.leaving:
            self.leaving = [upstream for upstream in self.leaving if upstream.outstanding]

    def ask_now(self, upstream: Upstream) -> None:
        """Something is wrong there: do not wait for the next turn."""
        poller = self._pollers.get(upstream)
        if poller is not None:
            poller.hurry.set()

    def left_out_of(self, name: str) -> ApiError | None:
        """404 for a model of models.yml whose kind is not served here."""
        kind = self.left_out.get(name)
        if kind is None:
            return None
        message = f"The model {name!r} is in models.yml, but models of kind {kind!r} are not served here."
        return ApiError(404, message, param="model", code="model_not_found")

    def may_come(self, name: str | None) -> ApiError | None:
        """503 when a model that is not in the catalog may be there soon: some upstream has never answered or has no
        address, and the model is promised, or was there, or it is early days; or a reload has just promised it."""
        early = monotonic() - self._started < self._settings.start_seconds
        absent = any(spec.dns and not self._addresses.get(spec.url) for spec in self._specs)
        awaited = absent or any(upstream.cards is None for upstream in self.upstreams)
        promised = name in self.expected
        if ((early or promised) and awaited) or (promised and self.just_reloaded) or self._was_there(name):
            which = f"The model {name!r} is" if name else "A model for this is"
            return unavailable(f"{which} not known here yet: not all servers behind this one have answered.", 2)
        return None

    @property
    def just_reloaded(self) -> bool:
        return monotonic() - self._reloaded < self._settings.reload_seconds

    def worth_waiting(self, name: str | None) -> bool:
        """Whether what may come is likely to: it is promised, or was there, or somebody has not even been tried. That
        nothing answers where somebody else's server should be is no such sign."""
        promised = name in self.expected if name else any(self.catalog.find(each) is None for each in self.expected)
        return promised or self._was_there(name) or any(not poller.asked.is_set() for poller in self._pollers.values())

    def _was_there(self, name: str | None) -> bool:
        """Whether a DNS name had this model, and none of its replicas has said yet what it serves now."""
        urls = [url for url, names in self._known.items() if name in names]
        answered = {upstream.spec.url for upstream in self.upstreams if upstream.cards is not None}
        return any(url not in answered for url in urls)

    def changed(self) -> None:
        self.catalog.rebuild(self.upstreams)

    def _upstream(self, spec: UpstreamSpec, ip: str | None, others: Iterable[Upstream] = ()) -> Upstream:
        upstream = Upstream(spec, self._settings, ip)
        taken = {each.slot for each in (*self.upstreams, *self.leaving, *others)}
        upstream.slot = next(slot for slot in count() if slot not in taken)
        return upstream

    def _follow(self, upstream: Upstream) -> _Poller:
        poller = self._pollers[upstream] = _Poller(upstream, self, self._settings)
        return poller

    def _watch_names(self) -> None:
        for spec in self._specs:
            if spec.dns and spec.url not in self._watches:
                self._watches[spec.url] = Watch(spec, self._settings, resolve, self._resolved)


def _check(specs: Iterable[UpstreamSpec]) -> None:
    for spec in specs:
        Address.parse(spec.http_url)


class _Poller:
    """Asks one upstream for its models: every few seconds, every second while it is down or loading, and after a
    reload."""

    def __init__(self, upstream: Upstream, fleet: Fleet, settings: Settings) -> None:
        self._upstream = upstream
        self._fleet = fleet
        self._settings = settings
        self.hurry = asyncio.Event()
        self.asked = asyncio.Event()
        self._began = monotonic()
        self._was_up: bool | None = None
        self._warned: set[str] = set()
        """What was said of it since it was last up."""
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
        try:
            response = await self._request()
            upstream.silent = 0
            response.raise_for_status()
            cards = _read_cards(response.content)
        except TROUBLES as error:
            self._failed(error)
            return False
        if upstream.breaker.cause is Failure.CONNECT:
            upstream.breaker.succeeded()
        upstream.learn(cards, self._settings)
        self._fleet.changed()
        self._tell_up()
        return all(card.get("state") in _SETTLED for card in cards) and not self._fleet.just_reloaded

    async def _request(self) -> httpx2.Response:
        """The model list's answer. The time limit is for all of it: bytes that trickle are no sign of health."""
        upstream, client = self._upstream, self._fleet.client
        headers, extensions = {}, {}
        if upstream.spec.key:
            headers["authorization"] = f"Bearer {upstream.spec.key}"
        if upstream.ip is not None:
            headers["host"] = upstream.address.netloc
            extensions["sni_hostname"] = upstream.address.host
        async with asyncio.timeout(self._settings.poll_timeout):
            return await client.get(upstream.models_url, headers=headers, extensions=extensions)

    def _failed(self, error: Exception) -> None:
        upstream, settings = self._upstream, self._settings
        if isinstance(error, SILENCE):
            upstream.silent += 1
            patience = settings.start_seconds
        elif isinstance(error, httpx2.ConnectError):
            upstream.breaker.failed(Failure.CONNECT, monotonic())
            patience = settings.absent_seconds
        else:
            # Confused, but there; requests decide whether it still answers them.
            upstream.silent = 0
            not_now = isinstance(error, httpx2.HTTPStatusError) and error.response.is_server_error
            patience = settings.absent_seconds if not_now else 0.0
        upstream.trouble = reason(error, upstream.models_path, settings.poll_timeout, bool(upstream.spec.key))
        self._fleet.changed()
        self._tell_trouble(upstream.trouble, patience)

    def _tell_trouble(self, trouble: str, patience: float) -> None:
        """Once for each trouble. What was never up is still starting, more often than not: that it is not there is told
        when it has had ``patience``."""
        label, was_up = self._upstream.label, self._was_up
        self._was_up = False
        if was_up is None:
            log.info("%s is not up yet: %s", label, trouble)
        waits = self._upstream.cards is None and monotonic() - self._began < patience
        if not waits and trouble not in self._warned:
            self._warned.add(trouble)
            log.warning("%s %s: %s", label, "is down" if was_up else "cannot be used", trouble)

    def _tell_up(self) -> None:
        """Whoever was told that it is down is told this, too."""
        self._upstream.trouble = None
        if not self._was_up:
            count = len(self._upstream.cards or [])
            level = logging.WARNING if self._warned else logging.INFO
            log.log(level, "%s is up: %d %s", self._upstream.label, count, "model" if count == 1 else "models")
        self._was_up = True
        self._warned.clear()


def _read_cards(content: bytes) -> list[dict[str, Any]]:
    """The entries of a model list whose fields are of the right types. Raises msgspec.DecodeError."""
    cards = msgspec.json.decode(content, type=_Listing).data
    for card in cards:
        msgspec.convert(card, _Card)
    return cards
