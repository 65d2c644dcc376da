"""Clients of an embeddings server: HTTP/1.1 by hand, so that they take little of the machine from what is measured."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import NamedTuple
from urllib.parse import urlsplit

TEXT = (
    "the quick brown fox jumps over a lazy dog while many people watch from the old wooden bridge near river "
    "city lights at night and talk about trains that never came and letters nobody wrote"
)
WORDS = TEXT.split()


class Load(NamedTuple):
    requests: int
    seconds: float
    latencies: list[float]
    """Of each request, in seconds, sorted."""

    def percentile(self, share: float) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))]


def texts(count: int, seed: int) -> list[str]:
    """Texts of 8 to 24 words, the same for every server."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(8, 24))) for _ in range(count)]


class Client:
    """One connection, kept open."""

    def __init__(self, url: str, model: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path
        self._model = model
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def embed(self, payload: str | list[str]) -> None:
        """One request; raises RuntimeError when the answer is not 200."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 26)
        reader, writer = self._streams
        body = json.dumps({"model": self._model, "input": payload, "encoding_format": "base64"}).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        if b" 200 " not in answer[:20]:
            raise RuntimeError(content[:300].decode())

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def drive(url: str, model: str, clients: int, seconds: float, batch: int = 1) -> Load:
    """``clients`` send one request after another for ``seconds``; each request has ``batch`` texts."""
    latencies: list[float] = []
    started = time.perf_counter()

    async def client(number: int) -> None:
        connection = Client(url, model)
        mine = texts(512 * batch, number)
        turn = 0
        while time.perf_counter() - started < seconds:
            at = (turn % 512) * batch
            begun = time.perf_counter()
            await connection.embed(mine[at] if batch == 1 else mine[at : at + batch])
            latencies.append(time.perf_counter() - begun)
            turn += 1
        connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return Load(len(latencies), time.perf_counter() - started, sorted(latencies))
