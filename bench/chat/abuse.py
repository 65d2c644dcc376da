"""200 clients with random parameters on the chat service, a third of whom leave early.

    python bench/chat/abuse.py [--seconds 180] [--clients 200] [--dtype auto]

Starts the service on the embedded model and checks that every request ended, that nothing runs, waits or holds memory
when all are gone, and that answers with a seed are the same when they are asked for again, alone. Exits with 1 when
not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import peers
from load import WORDS
from run import running

WAITING = 60


def random_body(chooser: random.Random) -> dict[str, Any]:
    words = " ".join(chooser.choices(WORDS, k=chooser.randrange(1, 120)))
    body: dict[str, Any] = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": f"Write about: {words}"}],
        "max_tokens": chooser.choice([1, 8, 30, 80]),
        "temperature": chooser.choice([0, 0.7, 1, 2]),
    }
    options: dict[str, Any] = {
        "top_p": 0.5, "top_k": 7, "min_p": 0.05, "presence_penalty": 1.0, "frequency_penalty": -1.0,
        "repetition_penalty": 1.2, "logit_bias": {"30": -100}, "logprobs": True, "stop": ["the", ". "],
        "n": chooser.randrange(1, 4), "ignore_eos": True, "min_tokens": 4, "seed": chooser.randrange(1 << 31),
        "response_format": {"type": "json_object"},
    }  # fmt: skip
    for name in chooser.sample(sorted(options), chooser.randrange(5)):
        body[name] = options[name]
    return body


async def lines(response: httpx2.Response) -> AsyncIterator[str]:
    """Lines as server-sent events have them. The client's own end at Unicode's separators, too, which answers hold."""
    rest = b""
    async for part in response.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.decode()


async def answer(client: httpx2.AsyncClient, body: dict[str, Any], leave_after: float | None = None) -> Any:
    """The choices' texts; or how the request ended otherwise: refused, left, error."""
    texts: dict[int, str] = {}
    start = time.monotonic()
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        if response.status_code != 200:
            await response.aread()
            return f"status {response.status_code}: {response.json()['error']['message'][:60]}"
        async for line in lines(response):
            if leave_after is not None and time.monotonic() - start > leave_after:
                return "left"
            if line == "data: [DONE]":
                return [texts[index] for index in sorted(texts)]
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    return "error"
                for choice in chunk["choices"]:
                    texts.setdefault(choice["index"], "")
                    texts[choice["index"]] += (choice.get("delta") or {}).get("content") or ""
    return "no end"


async def one_client(
    client: httpx2.AsyncClient, number: int, until: float, seen: Counter[str], seeded: list[tuple[Any, Any]]
) -> None:
    chooser = random.Random(number)
    while time.monotonic() < until:
        body = random_body(chooser)
        leave_after = chooser.random() * 5 if chooser.random() < 1 / 3 else None
        try:
            said = await asyncio.wait_for(answer(client, body, leave_after), WAITING * 3)
        except TimeoutError:
            said = "no end"
        seen["answered" if isinstance(said, list) else said] += 1
        if isinstance(said, list) and "seed" in body and len(seeded) < 40:
            seeded.append((body, said))
        if str(said).startswith("status 429"):
            await asyncio.sleep(1)


async def abuse(url: str, clients: int, seconds: float) -> int:
    limits = httpx2.Limits(max_connections=None)
    seen: Counter[str] = Counter()
    seeded: list[tuple[Any, Any]] = []
    async with httpx2.AsyncClient(base_url=url, timeout=WAITING * 4, limits=limits) as client:
        until = time.monotonic() + seconds
        await asyncio.gather(*(one_client(client, number, until, seen, seeded) for number in range(clients)))
        await asyncio.sleep(3)
        metrics = (await client.get("/metrics")).text
        same = sum([await answer(client, body) == said for body, said in seeded])
    print(f"requests: {dict(seen)}; seeded answers repeated: {same} of {len(seeded)}")
    left = [
        line
        for line in metrics.splitlines()
        if line.startswith(("quintet_num_requests_", "quintet_kv_cache_usage_perc")) and not line.endswith(" 0.0")
    ]
    print("\n".join(left) or "nothing runs, waits or holds memory")
    return 1 if left or seen["no end"] or seen["error"] or same < len(seeded) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long clients come back (default: 180)")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--dtype", default="auto", help="of the model: auto (the default), float32, bfloat16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = peers.ours(Path(folder), "embedded:smollm2-135m-instruct", dtype=options.dtype)
        with running(server) as served, served.awake() as url:
            return asyncio.run(abuse(url, options.clients, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
