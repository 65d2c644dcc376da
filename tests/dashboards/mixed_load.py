"""A little of everything, for a while: what makes every panel of the dashboards show something.

``python tests/dashboards/mixed_load.py URL SECONDS [CLIENTS]`` asks the embedded models behind the router at URL.
"""

from __future__ import annotations

import asyncio
import base64
import io
import sys
import time
from collections.abc import Awaitable, Callable

import httpx2
from PIL import Image, ImageDraw

CHAT, OCR, IMAGE, TTS, EMBEDDING = "smollm2-135m-instruct", "ppocr", "emoji-64", "hibari", "all-minilm-l6-v2"
Ask = Callable[[httpx2.AsyncClient], Awaitable[object]]


def picture_of(text: str) -> str:
    image = Image.new("RGB", (220, 60), "white")
    ImageDraw.Draw(image).text((10, 15), text, fill="black", font_size=28)
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def stream(client: httpx2.AsyncClient) -> None:
    body = {"model": CHAT, "stream": True, "max_tokens": 24, "messages": [{"role": "user", "content": "Tell me more."}]}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_lines():
            pass


async def leave(client: httpx2.AsyncClient) -> None:
    body = {"model": CHAT, "stream": True, "max_tokens": 400, "messages": [{"role": "user", "content": "A story."}]}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        await anext(response.aiter_lines())


def post(path: str, body: dict[str, object]) -> Ask:
    return lambda client: client.post(path, json=body)


def requests() -> list[Ask]:
    see: list[object] = [
        {"type": "text", "text": "Read it."},
        {"type": "image_url", "image_url": {"url": picture_of("Hello 42")}},
    ]
    hello = [{"role": "user", "content": "Hi"}]
    texts = [f"This is the sentence with the number {n}." for n in range(24)]
    return [
        post(
            "/v1/chat/completions", {"model": CHAT, "max_tokens": 16, "messages": [{"role": "user", "content": "Hi"}]}
        ),
        stream,
        post("/v1/embeddings", {"model": EMBEDDING, "input": texts}),
        post("/v1/chat/completions", {"model": OCR, "messages": [{"role": "user", "content": see}]}),
        post("/v1/audio/speech", {"model": TTS, "voice": "alloy", "input": "The quick brown fox jumps. It is red."}),
        post("/v1/rerank", {"model": EMBEDDING, "query": "fruit", "documents": ["an apple", "a car", "a pear"]}),
        post("/v1/images/generations", {"model": IMAGE, "prompt": "a red apple", "n": 1}),
        leave,
        post("/v1/chat/completions", {"model": CHAT, "messages": "wrong"}),
        post("/v1/chat/completions", {"model": "unknown", "messages": hello}),
    ]


async def load(url: str, seconds: float, clients: int = 2) -> int:
    """Ask until the time is up; how many answers there were."""
    asked = requests()
    end = time.monotonic() + seconds
    count = 0

    async def work(number: int) -> None:
        nonlocal count
        turn = number * len(asked) // clients
        async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
            while time.monotonic() < end:
                await asked[turn % len(asked)](client)
                turn, count = turn + 1, count + 1

    await asyncio.gather(*(work(number) for number in range(clients)))
    return count


if __name__ == "__main__":
    total = asyncio.run(load(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2))
    sys.stdout.write(f"{total} answers\n")
