"""Replicas are killed, frozen, slowed down and confused while clients work; what could be saved must not be lost.

    python bench/chaos/run.py [--seconds 180] [--clients 200] [--replicas 4]

Two replicas at most are in trouble at a time, so there is always one that could have answered. A request counts as
lost when its client gets an error before the answer has begun. An answer that breaks in the middle cannot be saved: it
has to end visibly, with an error event or a broken connection, and never look complete.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from socket import socket
from time import monotonic

REPLICA = Path(__file__).with_name("replica.py")
QUICK = ("slow", "garbage", "cut", "errors", "refuse")
ROUTER = ("--first-byte-timeout", "30", "--log-level", "error")


class Process:
    """A child with a port of its own, started again on the same one."""

    def __init__(self, *command: str) -> None:
        self._command = command
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.child: asyncio.subprocess.Process

    async def start(self) -> None:
        command = [part.replace("PORT", str(self.port)) for part in self._command]
        self.child = await asyncio.create_subprocess_exec(sys.executable, *command)
        for _ in range(400):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{command[0]} does not listen")

    async def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.child.returncode is None:
            self.child.send_signal(how)
            await self.child.wait()

    @property
    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Client:
    """Asks again and again on a connection that it keeps, as SDKs do; some leave in the middle."""

    def __init__(self, port: int, seed: int, seen: Counter[str]) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._seen = seen
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, until: float) -> None:
        while monotonic() < until:
            try:
                self._seen[await asyncio.wait_for(self._ask(), 60)] += 1
            except TimeoutError:
                self._seen["lost: no answer within 60 s"] += 1
                self._drop()
            await asyncio.sleep(self._random.uniform(0, 0.3))
        self._drop()

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream[1].transport.abort()
            self._stream = None

    async def _ask(self) -> str:
        """What became of one request."""
        streams = self._random.random() < 0.5
        talk = [{"role": "user", "content": f"{self._random.randrange(50)}" * self._random.choice((1, 20, 2000))}]
        body = json.dumps({"model": "m", "messages": talk, "stream": streams}).encode()
        if self._stream is None:
            self._stream = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._stream
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        if self._random.random() < 0.05:
            await asyncio.sleep(self._random.uniform(0, 0.05))
            self._drop()
            return "left"
        try:
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        except (asyncio.IncompleteReadError, ConnectionError):
            self._drop()
            return "lost: connection closed"
        status = int(answer.split()[1])
        try:
            content = await self._read(reader, answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._drop()
            return "broken in the middle" if streams else "lost: answer cut"
        if status != 200:
            return f"lost: {status}"
        if streams and not content.endswith(b"data: [DONE]\n\n"):
            self._drop()  # the router closes the connection after it
            return "broken in the middle" if b'"error"' in content else "WRONG: looks complete"
        return "answered"

    async def _read(self, reader: asyncio.StreamReader, head: bytes) -> bytes:
        if b"transfer-encoding: chunked" not in head:
            return await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        content = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            content += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return content


class Trouble:
    """Makes ``at_once`` replicas at most unwell at a time, until it is over; then all are well."""

    def __init__(self, replicas: list[Process], seed: int, longest: float, at_once: int) -> None:
        self._replicas = replicas
        self._random = random.Random(seed)
        self._longest = longest
        self._at_once = at_once
        self.made: Counter[str] = Counter()

    async def run(self, until: float) -> None:
        parts = [self._replicas[number :: self._at_once] for number in range(self._at_once)]
        await asyncio.gather(*(self._hurt(part, until) for part in parts))

    async def _hurt(self, replicas: list[Process], until: float) -> None:
        while monotonic() < until:
            replica = self._random.choice(replicas)
            what = self._random.choice(("killed", "frozen", *QUICK))
            seconds = self._random.uniform(0.2, self._longest)
            self.made[what] += 1
            if what == "killed":
                await replica.stop()
                await asyncio.sleep(seconds)
                await replica.start()
            elif what == "frozen":
                replica.child.send_signal(signal.SIGSTOP)
                await asyncio.sleep(2 * seconds)
                replica.child.send_signal(signal.SIGCONT)
            else:
                await set_mood(replica.port, what)
                await asyncio.sleep(seconds)
                await set_mood(replica.port, "well")
            await asyncio.sleep(self._random.uniform(0.1, 1.0))


async def set_mood(port: int, mood: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /mood HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(mood), mood.encode()))
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def metric(port: int, name: str) -> float:
    """The sum over all samples of this name."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))


async def chaos(
    seconds: float, clients: int, count: int, seed: int = 1, longest: float = 4.0, at_once: int = 2
) -> dict[str, object]:
    """Run it all; the numbers that matter."""
    replicas = [Process(str(REPLICA), "PORT") for _ in range(count)]
    urls = [part for replica in replicas for part in ("--upstream", f"http://127.0.0.1:{replica.port}")]
    router = Process("-m", "quintet_router", "--port", "PORT", *ROUTER, *urls)
    seen: Counter[str] = Counter()
    trouble = Trouble(replicas, seed, longest, at_once)
    started: list[Process] = []
    try:
        for process in (*replicas, router):
            await process.start()
            started.append(process)
        await asyncio.sleep(1.5)
        end = monotonic() + seconds
        working = [asyncio.create_task(Client(router.port, seed + n, seen).run(end)) for n in range(clients)]
        hurting = asyncio.create_task(trouble.run(end - 1))
        await asyncio.sleep(seconds / 4)
        early = router.resident_mb
        await asyncio.gather(*working, hurting)
        await asyncio.sleep(1)
        return {
            "requests": sum(seen.values()),
            "troubles": dict(trouble.made),
            "seen": dict(seen),
            "lost": sum(number for what, number in seen.items() if what.startswith(("lost", "WRONG"))),
            "in flight at the end": await metric(router.port, "quintet_router_in_flight"),
            "sent again": await metric(router.port, "quintet_router_retries_total"),
            "resident MB, early": round(early, 1),
            "resident MB, at the end": round(router.resident_mb, 1),
        }
    finally:
        for process in started:
            await process.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    result = asyncio.run(chaos(options.seconds, options.clients, options.replicas, options.seed))
    print(json.dumps(result, indent=2))
    sys.exit(1 if result["lost"] or result["in flight at the end"] else 0)


if __name__ == "__main__":
    main()
