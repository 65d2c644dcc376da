"""Connections to one address, the last used first, so that surplus ones grow old and go."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from functools import cache
from time import monotonic
from urllib.parse import urlsplit

from quintet_router.settings import Settings
from quintet_router.upstream.connection import Connection


@dataclass(frozen=True, slots=True)
class Address:
    """``path`` is what the URL says after the host, without a last slash: ``""`` or ``/v1``."""

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ValueError with a text for a person."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"an upstream is like http://host:port, not {url!r}")
        if parts.username or parts.query or parts.fragment:
            raise ValueError(f"an upstream's URL has only a host, a port and a path: {url!r}")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def netloc(self) -> str:
        """As in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


@cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """One for all connections; making one reads every certificate authority. ``ca_file`` has further ones.

    Raises ValueError when it cannot be read.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ValueError(f"{ca_file} has no certificates: {error}") from None
    return context


class Pool:
    """``idle_limit`` in seconds must be shorter than the upstream's own, or requests meet its closing.

    ``host`` is what to connect to: the address's host, or one of the addresses that this name has.
    """

    def __init__(self, address: Address, settings: Settings, host: str) -> None:
        self._address = address
        self._host = host
        self._closed = False
        self._connect_timeout = settings.connect_timeout
        self.idle_limit = settings.foreign_idle_timeout
        self.idle: list[Connection] = []
        self._tls = tls_context(settings.ca_file) if address.tls else None

    def take(self) -> Connection | None:
        """An idle connection that is still good."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.closing and monotonic() - connection.idle_since < self.idle_limit:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """Raises OSError or TimeoutError."""
        address = self._address
        name = address.host if address.tls else None
        async with asyncio.timeout(self._connect_timeout):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self.idle), self._host, address.port, ssl=self._tls, server_hostname=name
            )
        if connection.closing:  # as a Service's proxy does when the pod behind it has just gone
            raise ConnectionResetError("closed as soon as it was open")
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep the connection if its answer was read to the end, else close it."""
        if connection.release():
            if self._closed:
                connection.abort()
                return
            connection.idle_since = monotonic()
            self.idle.append(connection)

    def expire(self, now: float) -> None:
        """Close what was idle for too long; the oldest come first."""
        while self.idle and now - self.idle[0].idle_since >= self.idle_limit:
            self.idle.pop(0).abort()

    def close(self) -> None:
        """Connections in use are closed when they are given back."""
        self._closed = True
        while self.idle:
            self.idle.pop().abort()
