"""What the whole stack costs on this machine: time to the first token, memory, and 32 chat clients at once.

    python bench/stack/run.py [models.yml]

Starts ``quintet serve`` on a free port, measures, stops it, and prints a table. Memory is the sum over processes of the
resident set (shared pages counted in each, so it is an upper bound) and of the proportional set (shared pages split).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parents[2]
CHAT = "smollm2-135m-instruct"
CLIENTS, TOKENS = 32, 64


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def memory_of(pid: int) -> tuple[float, float]:
    """Resident and proportional set of one process, in MiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {name: int(kib) / 1024 for name, kib in re.findall(r"^(Rss|Pss):\s+(\d+) kB", rollup, re.MULTILINE)}
    return sizes["Rss"], sizes["Pss"]


def name_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    modules = [word for word in words if word.startswith("quintet")]
    return " ".join(modules) or "quintet serve"


def memory(pid: int) -> Iterator[tuple[str, float, float]]:
    for each in sorted(descendants(pid)):
        with contextlib.suppress(OSError, KeyError):
            yield name_of(each), *memory_of(each)


async def stream(client: httpx2.AsyncClient, prompt: str, tokens: int) -> tuple[float, float, int]:
    """Time to the first token, total time (seconds), and tokens, of one streamed answer."""
    body = {"model": CHAT, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "ignore_eos": True, "temperature": 0}
    start, first, count = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk: dict[str, Any] = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and first is None:
                first = time.perf_counter() - start
            count = (chunk.get("usage") or {}).get("completion_tokens", count)
    return first or 0.0, time.perf_counter() - start, count


async def first_token(url: str, started: float) -> float:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while time.perf_counter() - started < 300:
            with contextlib.suppress(httpx2.HTTPError):
                await stream(client, "Hi", 1)
                return time.perf_counter() - started
            await asyncio.sleep(0.1)
    raise SystemExit("no first token within 300 s")


async def all_ready(url: str, started: float) -> float:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while time.perf_counter() - started < 300:
            cards = (await client.get("/v1/models")).json()["data"]
            if cards and all(card.get("state") == "ready" for card in cards):
                return time.perf_counter() - started
            await asyncio.sleep(0.2)
    raise SystemExit("not all models ready within 300 s")


async def touch_every_kind(url: str) -> None:
    """One request each, so that memory is that of a stack in use."""
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        speech = {"input": "Hello there.", "voice": "heart"}
        for path, body in {
            "/v1/images/generations": {"prompt": "a red apple"},
            "/v1/audio/speech": speech,
            "/v1/embeddings": {"input": ["hello"]},
        }.items():
            (await client.post(path, json=body)).raise_for_status()


async def crowd(url: str) -> list[tuple[float, float, int]]:
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=httpx2.Limits(max_connections=None)) as client:
        prompts = [f"Tell me a short story about the number {i}." for i in range(CLIENTS)]
        return list(await asyncio.gather(*(stream(client, prompt, TOKENS) for prompt in prompts)))


async def measure(url: str, pid: int, started: float) -> None:
    print("| what | figure |\n|---|---|")
    print(f"| start to first chat token | {await first_token(url, started):.1f} s |")
    print(f"| start to all models ready | {await all_ready(url, started):.1f} s |")
    await touch_every_kind(url)
    begin = time.perf_counter()
    results = await crowd(url)
    wall = time.perf_counter() - begin
    tokens = sum(count for _, _, count in results)
    firsts = sorted(first for first, _, _ in results)
    print(f"| {CLIENTS} clients x {TOKENS} tokens: finished | {len(results)} of {CLIENTS} |")
    print(f"| tokens per second, all clients | {tokens / wall:.0f} |")
    print(f"| time to first token, median / last | {statistics.median(firsts):.2f} / {firsts[-1]:.2f} s |")
    rows = list(memory(pid))
    for name, rss, pss in rows:
        print(f"| memory: {name} | {rss:.0f} MiB resident, {pss:.0f} proportional |")
    resident, proportional = (sum(row[column] for row in rows) for column in (1, 2))
    print(f"| memory: all | {resident:.0f} MiB resident, {proportional:.0f} proportional |")


def main() -> None:
    config = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "models.yml")
    port = free_port()
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("quintet")), "serve", config, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        asyncio.run(measure(f"http://127.0.0.1:{port}", process.pid, started))
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
