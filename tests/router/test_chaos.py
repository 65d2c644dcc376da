"""Replicas that are killed, frozen and confused while clients work; and bytes that are no HTTP.

``QUINTET_CHAOS_SECONDS`` makes the first test longer than it is in the suite; ``make bench-chaos`` is the long run.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from router.harness import Door, FakeUpstream, open_door, until
from router.test_process import router_process

BENCH = Path(__file__).resolve().parents[2] / "bench" / "chaos"
SECONDS = float(os.environ.get("QUINTET_CHAOS_SECONDS", "6"))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    yield __import__("run")
    sys.modules.pop("run", None)


async def test_what_could_be_saved_is_not_lost(bench: Any) -> None:
    result = await bench.chaos(SECONDS, clients=12, count=3, longest=1.5, at_once=1)
    assert result["lost"] == 0, result
    assert result["requests"] > 2 * SECONDS
    assert result["in flight at the end"] == 0
    assert result["resident MB, at the end"] - result["resident MB, early"] < 8


async def test_a_rolling_restart_of_processes_under_keep_alive_traffic_loses_nothing(bench: Any) -> None:
    replicas = [bench.Process(str(BENCH / "replica.py"), "PORT") for _ in range(2)]
    try:
        for replica in replicas:
            await replica.start()
        urls = [part for each in replicas for part in ("--upstream", f"http://127.0.0.1:{each.port}")]
        async with router_process(*urls) as (_, door):
            await door.get("/v1/models")
            seen = bench.Counter()
            end = bench.monotonic() + 5
            clients = [asyncio.create_task(bench.Client(door.port, n, seen).run(end)) for n in range(6)]
            for replica in replicas:
                await asyncio.sleep(0.5)
                await bench.set_mood(replica.port, "leave")  # ends what it has begun, and closes what is idle
                await replica.child.wait()
                await replica.start()
                await asyncio.sleep(1.2)
            await asyncio.gather(*clients)
            assert set(seen) <= {"answered", "left"}, seen
            assert seen["answered"] > 10
    finally:
        for replica in replicas:
            await replica.stop()


def hostile(rng: random.Random) -> bytes:
    """One request that is wrong somewhere."""
    body = b'{"model": "m", "messages": []}'
    lines = [b"POST /v1/chat/completions HTTP/1.1", b"host: a", b"content-length: %d" % len(body)]
    wrong = [
        lambda: [rng.randbytes(rng.randint(1, 400))],
        lambda: [lines[0], b"content-length: 5", b"transfer-encoding: chunked"],
        lambda: [lines[0], b"content-length: 5", b"content-length: 6"],
        lambda: [lines[0], b"content-length: -1"],
        lambda: [lines[0], b"content-length: 99999999999999999999999"],
        lambda: [lines[0], b"content-length: 0x10"],
        lambda: [lines[0], b"transfer-encoding: chunked, identity"],
        lambda: [lines[0], b"transfer-encoding: xchunked"],
        lambda: [b"POST  /v1/chat/completions  HTTP/1.1", *lines[1:]],
        lambda: [b"POST /v1/chat/completions HTTP/9.9", *lines[1:]],
        lambda: [b"P\x00ST / HTTP/1.1", *lines[1:]],
        lambda: [lines[0], b"host : a", lines[2]],
        lambda: [lines[0], b" folded: a", lines[2]],
        lambda: [lines[0], b"x: " + rng.randbytes(40), lines[2]],
        lambda: [lines[0], b"content-type: multipart/form-data; boundary=" + rng.randbytes(20), lines[2]],
        lambda: [lines[0], b"x" * 70_000 + b": y", lines[2]],
        lambda: [b"GET /" + bytes([rng.randint(128, 255)]) * 20 + b" HTTP/1.1", b"host: a"],
        lambda: [lines[0], b"transfer-encoding: chunked", b"", b"zz\r\n" + body],
        lambda: [lines[0], b"transfer-encoding: chunked", b"", b"ffffffffffffffffff\r\n" + body],
        lambda: [*lines, b"", rng.randbytes(len(body))],
        lambda: [*lines, b"", b"[" * len(body)],
        lambda: [*lines, b"upgrade: websocket", b"connection: upgrade"],
    ]
    data = b"\r\n".join([*rng.choice(wrong)(), b"", b""])
    return data + (body if rng.random() < 0.5 else b"")


async def closes_or_refuses(door: Door, data: bytes) -> bool:
    """Whether no request of these bytes succeeded, and the router did not keep its client waiting for ever."""
    reader, writer = await door.connect()
    writer.write(data)
    writer.write_eof()
    try:
        answer = await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return True
    finally:
        writer.transport.abort()
    return not answer or answer[9:10] == b"4"


async def test_bytes_that_are_no_requests_are_refused_and_the_router_lives() -> None:
    rng = random.Random(11)
    upstream = FakeUpstream()
    async with open_door(upstream, head_timeout=2.0, body_timeout=2.0) as door:
        for _ in range(300):
            data = hostile(rng)
            assert await closes_or_refuses(door, data), data[:200]
        assert (await door.chat()).status == 200
        await until(lambda: not door.router._proxy._active)
        assert door.outstanding == 0
        assert len(upstream.requests) == 1
