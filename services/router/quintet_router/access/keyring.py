"""The keys in force: which client a request comes from, and what that client may do."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from fnmatch import translate
from functools import partial
from pathlib import Path
from time import time

from quintet_common.changes import settled, stamp
from quintet_common.errors import ApiError

from quintet_router.access import keyfile
from quintet_router.access.keyfile import Key, KeyFileError, digest

log = logging.getLogger("quintet.router")
_LOOK_SECONDS = 1.0


class Client:
    """Whoever has a key. ``running`` counts the client's requests in flight."""

    __slots__ = ("_exact", "_patterns", "key", "name", "restricted", "running")

    def __init__(self, key: Key | None) -> None:
        self.running = 0
        self.change(key)

    def change(self, key: Key | None) -> None:
        """Take over what the file now says of the key. None is a client of a router without keys: it may do all."""
        self.key = key
        self.name = key.name if key is not None else ""
        models = key.models if key is not None else None
        self._exact = None if models is None else frozenset(models)
        self.restricted = models is not None
        """Whether there can be models that it may not use."""
        patterns = [translate(model) for model in models or () if "*" in model or "?" in model]
        self._patterns = re.compile("|".join(patterns)) if patterns else None

    def may_use(self, model: str, aliases: Sequence[str] = ()) -> bool:
        """``model`` is an id. A key that names any of a model's names may use it by all of them."""
        if self._exact is None:
            return True
        names = (model, *aliases)
        if not self._exact.isdisjoint(names):
            return True
        return self._patterns is not None and any(map(self._patterns.match, names))


ANYONE = Client(None)


class Keyring:
    """The keys of a file. Raises KeyFileError when it cannot be used."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._first = stamp(self._path)
        self._reading = asyncio.Lock()
        self._clients: dict[bytes, Client] = {}
        self._known: dict[bytes, Client] = {}
        """By the whole header, as clients have sent it."""
        self.successful = True
        """Whether what the file says now is in force."""
        self.succeeded_at = time()
        self._take(self._read())

    def _read(self) -> list[Key]:
        """Raises KeyFileError."""
        keys = keyfile.read(self._path)
        if keyfile.too_open(self._path):
            log.warning("%s can be read by everyone on this machine; chmod 600 it.", self._path)
        return keys

    def _take(self, keys: Sequence[Key]) -> None:
        """Put ``keys`` in force. Clients that stay keep what is counted of them."""
        known = {client.name: client for client in self._clients.values()}
        clients = {}
        for key in keys:
            client = known.get(key.name) or Client(key)
            if client.key != key:
                client.change(key)
            clients[bytes.fromhex(key.sha256)] = client
        self._clients = clients
        self._known = {}

    def find(self, fields: dict[bytes, bytes]) -> Client:
        """Whose request it is, by its headers. Raises ApiError 401.

        What is compared are hashes, so the time it takes tells nothing of a key: SHA-256, or for a header that was
        right before, the secret one of Python's dicts.
        """
        header = fields.get(b"authorization", b"")
        client = self._known.get(header)
        if client is not None:
            return client
        scheme, _, secret = header.partition(b" ")
        if scheme.lower() != b"bearer":
            secret = fields.get(b"x-api-key", b"")
        client = self._clients.get(digest(secret.strip()))
        if client is None:
            raise Unauthorized(bool(secret))
        if scheme.lower() == b"bearer" and len(self._known) < 2 * len(self._clients):
            self._known[header] = client
        return client

    async def watch(self) -> None:
        """Read the file again whenever it has changed and stays as it is, until cancelled."""
        async for _ in settled(partial(stamp, self._path), self._first, _LOOK_SECONDS):
            await self.reload()

    async def reload(self) -> None:
        """Read the file again. What cannot be used changes nothing but ``successful``.

        In a thread: thousands of keys take seconds, in which nobody would be answered.
        """
        async with self._reading:  # or what was read first might be taken over last
            try:
                keys = await asyncio.to_thread(self._read)
            except KeyFileError as error:
                self.successful = False
                log.error("The keys stay as they were: %s", error)
                return
            self._take(keys)
            self.successful, self.succeeded_at = True, time()
            log.info("%d keys are in force.", len(keys))


class Unauthorized(ApiError):
    def __init__(self, sent: bool) -> None:
        message = "Incorrect API key." if sent else "No API key: send one in the header Authorization: Bearer YOUR_KEY."
        super().__init__(401, message, code="invalid_api_key")

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "www-authenticate": "Bearer"}
