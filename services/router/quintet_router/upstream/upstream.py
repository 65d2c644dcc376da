"""One server behind the router, as the hot path sees it."""

from __future__ import annotations

from typing import Any

from quintet_common.models_yml import UpstreamSpec

from quintet_router.paths import Path
from quintet_router.settings import Settings
from quintet_router.upstream.breaker import Breaker
from quintet_router.upstream.pool import Address, Pool


class Upstream:
    """``cards`` are the entries of its model list, as last seen; None while it has never answered."""

    def __init__(self, spec: UpstreamSpec, settings: Settings) -> None:
        self.spec = spec
        self.address = Address.parse(spec.url)
        self.label = self.address.netloc + self.address.path
        self.pool = Pool(self.address, settings.connect_timeout, settings.foreign_idle_timeout)
        self.breaker = Breaker(settings.breaker_failures)
        self.outstanding = 0
        self.cards: list[dict[str, Any]] | None = None
        self.ours = False
        """Whether it is one of Quintet's services, which speak on the bare paths too."""
        authorization = f"authorization: Bearer {spec.key}\r\n" if spec.key else ""
        self._head = f" HTTP/1.1\r\nhost: {self.address.netloc}\r\n{authorization}".encode()
        self._prefix = self.address.path.encode()

    def learn(self, cards: list[dict[str, Any]], settings: Settings) -> None:
        """Take in the entries of its model list."""
        wanted = self.spec.models
        self.ours = any("kind" in card for card in cards)
        self.cards = [card for card in cards if wanted is None or card["id"] in wanted]
        self.pool.idle_limit = settings.idle_timeout if self.ours else settings.foreign_idle_timeout

    def request_head(self, method: bytes, path: Path, raw_path: bytes, query: bytes, client_host: bytes) -> bytes:
        """The request line and the headers that are the upstream's own.

        Our services hear under which host the client knows the router: they make links to pictures with it.
        """
        if self._prefix:
            raw_path = self._prefix + raw_path.removeprefix(b"/v1")
        elif path.standard and not self.ours and not raw_path.startswith(b"/v1/"):
            raw_path = b"/v1" + raw_path
        target = raw_path + b"?" + query if query else raw_path
        host = b"x-forwarded-host: " + client_host + b"\r\n" if client_host and self.ours else b""
        return method + b" " + target + self._head + host

    @property
    def url(self) -> str:
        return self.spec.url.rstrip("/")

    @property
    def models_url(self) -> str:
        return self.url + ("/models" if self._prefix else "/v1/models")

    @property
    def openapi_url(self) -> str:
        return self.url.removesuffix(self.address.path) + "/openapi.json"

    def close(self) -> None:
        """Idle connections go; requests in flight end by themselves and their connections then go too."""
        self.pool.idle_limit = 0.0
        self.pool.close()
