"""Hours of ordinary work: does the router's memory grow, is a request lost, is a counter left behind?

    python bench/chaos/soak.py [--minutes 30] [--share 0.7] [--clients 64] [--rate REQUESTS_PER_SECOND]

Two well replicas; clients that ask for answers and streams, send large bodies and forms, and leave in the middle. First
they ask as fast as they can, which is the capacity of this machine with everything on it; then they keep to a share of
it, or to ``--rate``. Memory is taken after the first fifth and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from run import REPLICA, Client, Process, metric

sys.path.append(str(Path(__file__).resolve().parents[1]))
from processes import cpu_seconds

CAPACITY_SECONDS = 10.0
MOST_GROWTH_MB = 5.0
BOUNDARY = b"soak-boundary"


class Pace:
    """Lets so many through in a second; None: all."""

    def __init__(self, rate: float | None) -> None:
        self._step = 0.0 if rate is None else 1 / rate
        self._next = monotonic()

    async def turn(self) -> None:
        now = monotonic()
        self._next = max(self._next, now - 1) + self._step  # what was missed is made up for, of one second at most
        await asyncio.sleep(max(0.0, self._next - now) if self._step else 0)


class Worker(Client):
    """One client; what it asks for differs from one request to the next."""

    async def work(self, until: float, pace: Pace) -> None:
        while monotonic() < until:
            await pace.turn()
            try:
                self._seen[await asyncio.wait_for(self._one(), 60)] += 1
            except TimeoutError:
                self._seen["lost: no answer within 60 s"] += 1
                self._drop()
        self._drop()

    async def _one(self) -> str:
        kind = self._random.choices(("json", "stream", "left", "large", "form"), (60, 20, 8, 2, 10))[0]
        content_type, path, body = "application/json", "/v1/chat/completions", b""
        if kind == "form":
            content_type, path = f"multipart/form-data; boundary={BOUNDARY.decode()}", "/v1/audio/transcriptions"
            body = _form(self._random.randbytes(self._random.randrange(1000, 200_000)))
        else:
            size = self._random.randrange(200_000, 2_000_000) if kind == "large" else self._random.randrange(10, 4000)
            talk = [{"role": "user", "content": f"{self._random.randrange(10**6)} " + "x" * size}]
            streams = kind == "stream" or (kind == "left" and self._random.random() < 0.5)
            body = json.dumps({"model": "m", "messages": talk, "stream": streams}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: r\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
        if self._stream is None:
            self._stream = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._stream
        if kind == "left":
            writer.write(head.encode() + body[: self._random.choice((len(body) // 2, len(body)))])
            await asyncio.sleep(self._random.uniform(0, 0.05))
            self._drop()
            return kind
        writer.write(head.encode() + body)
        return await self._answer(reader, kind)

    async def _answer(self, reader: asyncio.StreamReader, kind: str) -> str:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            content = await self._read(reader, head)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._drop()
            return f"lost: {kind} broke off"
        status = int(head.split()[1])
        whole = content.endswith(b"data: [DONE]\n\n") if kind == "stream" else content.endswith(b"}")
        if status != 200 or not whole:
            self._drop()
            return f"lost: {kind} {status}"
        return kind


def _form(sound: bytes) -> bytes:
    line = b"--" + BOUNDARY + b"\r\ncontent-disposition: form-data; name="
    file = line + b'"file"; filename="a.wav"\r\ncontent-type: audio/wav\r\n\r\n' + sound + b"\r\n"
    return file + line + b'"model"\r\n\r\nm\r\n--' + BOUNDARY + b"--\r\n"


async def work(port: int, clients: int, seconds: float, rate: float | None) -> Counter[str]:
    """What became of the requests of so many clients."""
    seen: Counter[str] = Counter()
    pace, until = Pace(rate), monotonic() + seconds
    await asyncio.gather(*(Worker(port, number, seen).work(until, pace) for number in range(clients)))
    return seen


async def soak(seconds: float, share: float, clients: int, rate: float | None) -> dict[str, Any]:
    """Run it; the numbers that matter. Memory in MB, ``seconds`` of the part that is measured."""
    replicas = [Process(str(REPLICA), "PORT") for _ in range(2)]
    urls = [part for replica in replicas for part in ("--upstream", f"http://127.0.0.1:{replica.port}")]
    router = Process("-m", "quintet_router", "--port", "PORT", "--log-level", "error", *urls)
    started: list[Process] = []
    try:
        for process in (*replicas, router):
            await process.start()
            started.append(process)
        await asyncio.sleep(1.5)
        first = router.resident_mb
        full = await work(router.port, clients, CAPACITY_SECONDS, None)
        capacity = full.total() / CAPACITY_SECONDS
        rate = rate or share * capacity
        seen = full + await work(router.port, clients, seconds / 5, rate)
        warm, used = router.resident_mb, cpu_seconds(router.child.pid)
        most = [warm]
        watching = asyncio.create_task(_watch(router, most))
        later = await work(router.port, clients, seconds * 4 / 5, rate)
        busy = (cpu_seconds(router.child.pid) - used) / (seconds * 4 / 5)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await asyncio.sleep(2)
        seen += later
        return {
            "requests per second at most": round(capacity, 1),
            "requests per second": round(later.total() / (seconds * 4 / 5), 1),
            "router busy, share of a core": round(busy, 3),
            "seen": dict(seen),
            "lost": sum(number for what, number in seen.items() if what.startswith("lost")),
            "in flight at the end": await metric(router.port, "quintet_router_in_flight"),
            "waiting at the end": await metric(router.port, "quintet_router_waiting"),
            "resident MB at the start": round(first, 1),
            "resident MB after warming up": round(warm, 1),
            "resident MB at most": round(max(most), 1),
            "resident MB at the end": round(router.resident_mb, 1),
        }
    finally:
        for process in started:
            await process.stop()


async def _watch(router: Process, seen: list[float]) -> None:
    while True:
        await asyncio.sleep(5)
        seen.append(router.resident_mb)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--share", type=float, default=0.7, help="of the capacity")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rate", type=float, help="requests per second, instead of a share")
    options = parser.parse_args()
    result = asyncio.run(soak(options.minutes * 60, options.share, options.clients, options.rate))
    print(json.dumps(result, indent=2))
    growth = result["resident MB at the end"] - result["resident MB after warming up"]
    sys.exit(1 if result["lost"] or result["in flight at the end"] or growth >= MOST_GROWTH_MB else 0)


if __name__ == "__main__":
    main()
