"""Which models there are, who serves them, and which one a request means. Rebuilt whole whenever something changed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quintet_router.upstream.upstream import Upstream

_USABLE = ("ready", "idle", None)


@dataclass(slots=True)
class Target:
    """A model on one upstream. ``rename`` is its id there, where that differs from the one that clients use."""

    upstream: Upstream
    rename: str | None
    state: str | None


@dataclass(slots=True)
class Model:
    """One id: several targets are replicas."""

    id: str
    kind: str | None
    default: bool
    card: dict[str, Any]
    targets: list[Target] = field(default_factory=list)
    usable: list[Target] = field(default_factory=list)
    """The targets worth trying: those that can answer now, or all when none can."""
    loading: bool = False
    """Whether none can answer now but one will."""

    @property
    def aliases(self) -> list[str]:
        return self.card.get("aliases") or []


class Catalog:
    def __init__(self) -> None:
        self._names: dict[str, Model] = {}
        self._models: list[Model] = []
        self._defaults: dict[tuple[str, ...], Model | None] = {}
        self.listing = b'{"object":"list","data":[]}'
        """The body of ``GET /v1/models``."""
        self._news: asyncio.Future[None] | None = None

    def rebuild(self, upstreams: Collection[Upstream]) -> None:
        """Take over what the upstreams last said. What is unreachable stays known, and says so."""
        models: dict[str, Model] = {}
        for upstream in upstreams:
            for card in upstream.cards or []:
                _add(models, upstream, card)
        names = {**_foreign_aliases(models, upstreams), **models}
        for model in models.values():
            _settle(model)
            for alias in model.card.get("aliases") or []:
                names.setdefault(alias, model)
        self._models = list(models.values())
        self._names = names
        self._defaults = {}
        self.listing = msgspec.json.encode({"object": "list", "data": [model.card for model in self._models]})

        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def next_rebuild(self) -> asyncio.Future[None]:
        """Done when the catalog has changed. Several may wait for the same one, so it must not be cancelled."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    @property
    def names(self) -> Iterable[str]:
        """All ids and aliases."""
        return self._names.keys()

    def find(self, name: str) -> Model | None:
        """By id or alias."""
        return self._names.get(name)

    def default(self, kinds: tuple[str, ...]) -> Model | None:
        """Who answers a request that names no model: the default of the first of ``kinds`` that is served at all.

        Other servers do not tell their models' kinds; such a model answers when it is the only one.
        """
        if kinds not in self._defaults:
            self._defaults[kinds] = self._find_default(kinds)
        return self._defaults[kinds]

    def _find_default(self, kinds: tuple[str, ...]) -> Model | None:
        for kind in kinds:
            of_kind = sorted((m for m in self._models if m.kind == kind), key=lambda model: not model.default)
            if of_kind:
                return of_kind[0]
        unknown = [model for model in self._models if model.kind is None]
        return unknown[0] if len(unknown) == 1 else None

    def serving(self, kinds: tuple[str, ...]) -> list[Target]:
        """One target per upstream that serves any of ``kinds``, or may: see ``default``."""
        by_upstream: dict[str, Target] = {}
        for model in self._models:
            if model.kind is None or model.kind in kinds:
                for target in model.targets:
                    by_upstream.setdefault(target.upstream.label, target)
        return list(by_upstream.values())

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)


def _add(models: dict[str, Model], upstream: Upstream, card: dict[str, Any]) -> None:
    prefix = upstream.spec.prefix
    name = prefix + card["id"]
    model = models.get(name)
    if model is None:
        shown = {"object": "model", "created": 0, "owned_by": "unknown", **card, "id": name}
        if prefix and card.get("aliases"):
            shown["aliases"] = []  # an upstream knows its aliases without the prefix only
        model = models[name] = Model(name, card.get("kind"), bool(card.get("default")), shown)
    model.targets.append(Target(upstream, card["id"] if prefix else None, card.get("state")))


def _foreign_aliases(models: dict[str, Model], upstreams: Collection[Upstream]) -> dict[str, Model]:
    """The models by the names that ``upstreams:`` gives them. Their upstreams do not know these names."""
    named: dict[str, Model] = {}
    for upstream in upstreams:
        for alias, there in upstream.spec.aliases.items():
            original = models.get(upstream.spec.prefix + there)
            targets = [each for each in original.targets if each.upstream is upstream] if original else []
            if original is None or not targets or alias in models:
                continue
            if alias not in named:
                named[alias] = Model(original.id, original.kind, False, original.card)
            named[alias].targets += [Target(upstream, there, each.state) for each in targets]
            if alias not in (known := original.card.get("aliases") or []):
                original.card["aliases"] = [*known, alias]
    for model in named.values():
        _settle(model)
    return named


def _settle(model: Model) -> None:
    """Which targets to use, and the state that the model's card shows: the best of its replicas'."""
    reachable = [target for target in model.targets if target.upstream.breaker.reachable]
    ready = [target for target in reachable if target.state in _USABLE]
    # Also those whose circuit is open now: only a request can find out that such a one is well again.
    model.usable = [target for target in model.targets if target.state in _USABLE] if ready else model.targets
    model.loading = not ready and any(target.state == "loading" for target in reachable)
    best = next(iter(ready or reachable), None)
    state = best.state if best is not None else "unreachable"
    if state is not None:
        model.card["state"] = state
