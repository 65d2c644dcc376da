"""The addresses behind a name: those of a headless Service in Kubernetes are its replicas."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from quintet_common.models_yml import UpstreamSpec

from quintet_router.settings import Settings
from quintet_router.upstream.pool import Address

log = logging.getLogger("quintet.router")

Resolve = Callable[[str, int], Awaitable[frozenset[str]]]
"""All addresses of a host. Raises OSError when they cannot be found out; none at all are an answer, too."""
_NO_ADDRESSES = (socket.EAI_NONAME, socket.EAI_NODATA)


async def resolve(host: str, port: int) -> frozenset[str]:
    """Ask the system: A and AAAA records."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_ADDRESSES:
            return frozenset()
        raise
    return frozenset(str(address[0]) for *_, address in found)


class Watch:
    """Asks for the addresses of one upstream's name, again and again.

    ``found`` is awaited with them whenever they have changed. What cannot be found out changes nothing, and that a name
    has no address any more counts only when it is said twice: a name server that restarts says so, too.
    """

    def __init__(
        self,
        spec: UpstreamSpec,
        settings: Settings,
        resolve: Resolve,
        found: Callable[[UpstreamSpec, frozenset[str]], Awaitable[None]],
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._resolve = resolve
        self._found = found
        self._address = Address.parse(spec.http_url)
        self._known: frozenset[str] | None = None
        self.asked = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        settings, missed = self._settings, 0
        while True:
            try:
                addresses = await self._resolve(self._address.host, self._address.port)
            except OSError as error:
                log.warning("The addresses of %s cannot be found out: %s", self._address.host, error)
                missed = 0
            else:
                missed = 0 if addresses else missed + 1
                if addresses != self._known and (addresses or missed > 1):
                    log.info("%s is at %s", self._address.host, ", ".join(sorted(addresses)) or "no address")
                    self._known = addresses
                    try:
                        await self._found(self._spec, addresses)
                    except Exception:
                        log.exception("The addresses of %s cannot be used.", self._address.host)
            self.asked.set()
            await asyncio.sleep(settings.dns_seconds if self._known else settings.poll_waiting_seconds)
