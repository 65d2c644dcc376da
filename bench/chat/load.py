"""Clients of a chat server: each streams answers, and what they saw comes back as figures."""

from __future__ import annotations

import asyncio
import json
import random
import time
from statistics import median
from typing import Any, NamedTuple

WORDS = [
    "river",
    "clock",
    "garden",
    "engine",
    "winter",
    "letter",
    "market",
    "bridge",
    "copper",
    "violin",
    "harbour",
    "candle",
    "forest",
    "mirror",
]


class Answer(NamedTuple):
    first: float
    """Seconds to the first text."""
    tokens: int


class Load(NamedTuple):
    seconds: float
    answers: list[Answer]

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def first(self) -> float:
        """Median of the time to the first text, in seconds."""
        return median(answer.first for answer in self.answers)


def questions(clients: int, seed: int) -> list[str]:
    """Other words each time, so that no server has seen more of them than the beginning of its template."""
    chooser = random.Random(seed)
    return [f"Tell me a long story about a {', a '.join(chooser.sample(WORDS, 4))}." for _ in range(clients)]


async def drive(port: int, texts: list[str], tokens: int, fields: dict[str, Any]) -> Load:
    """One streamed answer of ``tokens`` tokens to each of the texts, all at once."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, text, tokens, fields) for text in texts))
    return Load(time.perf_counter() - start, list(answers))


async def ask(port: int, text: str, tokens: int, fields: dict[str, Any]) -> Answer:
    """Plain HTTP/1.1 over a socket: the client's work must not weigh on the cores that are measured."""
    body = json.dumps(
        {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0.0, "stream": True,
         "stream_options": {"include_usage": True}, **fields}
    ).encode()  # fmt: skip
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError((status + await reader.read(2000)).decode(errors="replace"))
        return await _read(reader, start)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, start: float) -> Answer:
    first, pieces, counted = 0.0, 0, 0
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            break
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if any((choice.get("delta") or {}).get("content") for choice in chunk.get("choices") or []):
            pieces += 1
            first = first or time.perf_counter() - start
        counted = (chunk.get("usage") or {}).get("completion_tokens") or counted
    if not first:
        raise RuntimeError("an answer without text")
    return Answer(first, counted or pieces)
