"""The door: every request passes here before anything is done for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence

from quintet_common.addresses import is_loopback
from quintet_common.errors import ApiError, model_not_found
from starlette.types import Scope

from quintet_router.access.keyfile import Key
from quintet_router.access.keyring import ANYONE, Client, Keyring
from quintet_router.access.places import Places
from quintet_router.access.rates import MemoryRates, Rate, Rates
from quintet_router.headers import Header

_THROUGH_A_PROXY = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")


class LimitReached(ApiError):
    """429 for a key that has asked too much; ``extra`` headers tell how much is allowed."""

    def __init__(self, message: str, seconds: float, extra: list[Header]) -> None:
        super().__init__(429, message, code="rate_limit_exceeded", retry_after=max(1, math.ceil(seconds)))
        self._extra = extra

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | {name.decode(): value.decode() for name, value in self._extra}


class Gate:
    """``keyring`` None: whoever can reach the router may use it. ``rates`` and ``places``: where other routers count,
    too."""

    def __init__(
        self, keyring: Keyring | None = None, rates: Rates | None = None, places: Places | None = None
    ) -> None:
        self.keyring = keyring
        self.locked = keyring is not None
        self._rates = rates or MemoryRates()
        self._places = places

    def identify(self, fields: dict[bytes, bytes]) -> Client:
        """Whose request it is. Raises ApiError 401."""
        return ANYONE if self.keyring is None else self.keyring.find(fields)

    def enter(self, client: Client) -> bool:
        """Let one request in, which has to ``leave`` again; whether others must be asked, too, by ``admit``. Raises
        ApiError 429."""
        key = client.key
        assert key is not None
        most = key.concurrent_requests
        if most is not None and client.running >= most:
            raise _too_many_at_once(key)
        client.running += 1
        return key.requests_per_minute is not None or (most is not None and self._places is not None)

    async def admit(self, client: Client) -> tuple[list[Header], str]:
        """Count one request of the key's over all routers: headers for its answer, and the place that it has taken.
        Raises ApiError 429."""
        key = client.key
        assert key is not None
        place = ""
        if self._places is not None and key.concurrent_requests is not None:
            taken = await self._places.take(key.name, key.concurrent_requests)
            if taken is None:
                raise _too_many_at_once(key)
            place = taken
        if key.requests_per_minute is None:
            return [], place
        rate = await self._rates.hit(key.name, key.requests_per_minute)
        if rate.wait:
            self._give_back(place)
            raise _too_many(key.name, rate)
        return rate.headers, place

    async def limits(self, fields: dict[bytes, bytes]) -> list[Header]:
        """Headers that tell what is left to a key, for answers to requests that are not counted."""
        try:
            key = self.identify(fields).key
        except ApiError:
            return []
        if key is None or key.requests_per_minute is None:
            return []
        return (await self._rates.look(key.name, key.requests_per_minute)).headers

    def leave(self, client: Client, place: str) -> None:
        """The end of a request that was let in."""
        client.running -= 1
        self._give_back(place)

    def _give_back(self, place: str) -> None:
        if place and self._places is not None:
            self._places.give_back(place)

    async def watch(self) -> None:
        """Keep what is taken of the places, and follow the file of keys, until cancelled."""
        works = [self.keyring.watch()] if self.keyring is not None else []
        works += [self._places.keep()] if self._places is not None else []
        await asyncio.gather(*works)

    def check_admin(self, scope: Scope) -> None:
        """Raises ApiError 401 or 403 for who may not look behind the door: with keys, all but an admin key; without
        keys, whoever is not on this machine."""
        fields = dict(scope["headers"])
        if self.keyring is not None:
            key = self.keyring.find(fields).key
            if key is None or not key.admin:
                raise ApiError(403, "This needs a key with admin rights.", code="admin_key_required")
        elif not _is_local(scope, fields):
            raise ApiError(403, "Without API keys this is answered to its own machine alone.", code="local_only")

    async def close(self) -> None:
        await self._rates.close()
        if self._places is not None:
            await self._places.close()


def check_model(client: Client, model: str, aliases: Sequence[str], asked: str | None) -> None:
    """Raises ApiError 404 for a model that ``client`` may not use, the same as for one that there is not."""
    if not client.may_use(model, aliases):
        raise no_model(client, asked or model)


def no_model(client: Client, asked: str, names: Iterable[str] = ()) -> ApiError:
    """404; who may use all models is told which of their ``names`` may have been meant."""
    if not client.restricted:
        return model_not_found(asked, names)
    message = f"The model {asked!r} does not exist, or this key may not use it."
    return ApiError(404, message, param="model", code="model_not_found")


def _too_many_at_once(key: Key) -> ApiError:
    return LimitReached(f"The key {key.name!r} may have {key.concurrent_requests} requests at once.", 1, [])


def _too_many(name: str, rate: Rate) -> ApiError:
    return LimitReached(f"The key {name!r} may send {rate.limit} requests per minute.", rate.wait, rate.headers)


def _is_local(scope: Scope, fields: dict[bytes, bytes]) -> bool:
    """Whether a request comes from this machine itself: not through a proxy on it, and not from a page in a browser
    that was led here by a name which an attacker made point to 127.0.0.1."""
    client = scope.get("client")
    host = fields.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]")
    through = any(name in fields for name in _THROUGH_A_PROXY)
    return client is not None and is_loopback(client[0]) and is_loopback(host) and not through
