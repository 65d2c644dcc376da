"""One server behind the router, as the hot path sees it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import Any

from quintet_common.models_yml import UpstreamSpec

from quintet_router.paths import Path
from quintet_router.settings import Settings
from quintet_router.upstream.breaker import Breaker
from quintet_router.upstream.pool import Address, Pool
from quintet_router.usage import ASK


class Upstream:
    """``cards`` are the entries of its model list, as last seen; None while it has never answered.

    ``ip``: the one of its name's addresses that this is, where each is an upstream of its own. Raises ValueError for a
    URL that is none.
    """

    def __init__(self, spec: UpstreamSpec, settings: Settings, ip: str | None = None) -> None:
        self.spec = spec
        self.ip = ip
        self.address = Address.parse(spec.http_url)
        there = self.address if ip is None else replace(self.address, host=ip)
        self.label = there.netloc + there.path
        self.url = ("https://" if there.tls else "http://") + self.label
        """Its URL, by its own address."""
        self.pool = Pool(self.address, settings, there.host)
        self.slot = 0
        """A small number of its own among all upstreams that are there."""
        self.seed = int.from_bytes(blake2b(self.label.encode(), digest_size=8).digest(), "big")
        self.silent = 0
        """Polls in a row that it left without an answer until they were given up."""
        self.busy_until = 0.0
        """Until then other replicas are asked first: it has said that it cannot answer now."""
        self.retired = False
        """Whether it was taken out: it ends what it has, and gets nothing new."""
        self.breaker = Breaker(settings.breaker_failures)
        self.outstanding = 0
        self.limit = settings.max_concurrent
        """Most requests at a time; None for any number."""
        self.first_byte_seconds = 0.0
        """Lately, from sending a request to the answer's headers; a moving average."""
        self.cards: list[dict[str, Any]] | None = None
        self._listed: list[dict[str, Any]] | None = None
        self.trouble: str | None = "it has not answered yet"
        """Why it did not tell its models when it was last asked."""
        self.ours = False
        """Whether it is one of Quintet's services, which speak on the bare paths too."""
        authorization = f"authorization: Bearer {spec.key}\r\n" if spec.key else ""
        self._head = f" HTTP/1.1\r\nhost: {self.address.netloc}\r\n{authorization}".encode()
        self._prefix = self.address.path.encode()

    def learn(self, cards: list[dict[str, Any]], settings: Settings) -> None:
        """Take in the entries of its model list."""
        self._listed = cards
        wanted = self.spec.models
        self.ours = any("kind" in card for card in cards)
        self.cards = [card for card in cards if wanted is None or card["id"] in wanted]
        self.pool.idle_limit = settings.idle_timeout if self.ours else settings.foreign_idle_timeout

    def inherit(self, before: Upstream, settings: Settings) -> None:
        """Take over what is known of the same server by another entry, while it has not answered to this one."""
        if self.cards is None and before._listed is not None:
            self.learn(before._listed, settings)

    @property
    def frozen(self) -> bool:
        """Whether it seems to answer nothing at all: one slow poll may be a coincidence."""
        return self.silent > 1

    @property
    def full(self) -> bool:
        return self.limit is not None and self.outstanding >= self.limit

    def observe(self, seconds: float) -> None:
        """Take one answer's time to its headers into the average."""
        known = self.first_byte_seconds
        self.first_byte_seconds = known + (seconds - known) / 8 if known else seconds

    def request_head(self, path: Path, raw_path: bytes, query: bytes, client_host: bytes) -> bytes:
        """The request line and the headers that are the upstream's own.

        Our services hear under which host the client knows the router: they make links to pictures with it.
        """
        if self._prefix:
            raw_path = self._prefix + raw_path.removeprefix(b"/v1")
        elif path.standard and not self.ours and not raw_path.startswith(b"/v1/"):
            raw_path = b"/v1" + raw_path
        target = raw_path + b"?" + query if query else raw_path
        if not self.ours:
            return path.method.encode() + b" " + target + self._head
        host = b"x-forwarded-host: " + client_host + b"\r\n" if client_host else b""
        return path.method.encode() + b" " + target + self._head + ASK + host

    @property
    def models_path(self) -> str:
        return self.address.path + "/models" if self._prefix else "/v1/models"

    @property
    def models_url(self) -> str:
        return self.url.removesuffix(self.address.path) + self.models_path

    @property
    def openapi_url(self) -> str:
        return self.url.removesuffix(self.address.path) + "/openapi.json"

    def close(self) -> None:
        """Idle connections go; requests in flight end by themselves and their connections then go too."""
        self.retired = True
        self.pool.close()
