"""What goes wrong on real machines: a worker killed in a stream, clients that leave, a crowd, odd requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stack import CHAT, Stack, descendants

QUESTION = {"model": CHAT, "messages": [{"role": "user", "content": "Tell me a long story about a ship."}]}


@pytest.fixture
def client(stack: Stack) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=stack.url, timeout=180, limits=httpx2.Limits(max_connections=None))


async def card(client: httpx2.AsyncClient, model: str = CHAT) -> dict[str, Any]:
    return (await client.get(f"/v1/models/{model}")).json()


async def running(client: httpx2.AsyncClient, stack: Stack) -> float:
    """Requests that the chat engine holds, from the service's own metrics."""
    text = (await client.get(f"{stack.service_url('chat')}/metrics")).text
    values = re.findall(r"^quintet_num_requests_(?:running|waiting)\{.*?\} (\S+)", text, re.MULTILINE)
    return sum(float(value) for value in values)


async def until(what: Any, seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not await what():  # noqa: ASYNC110  # what is waited for happens in another process
            await asyncio.sleep(0.1)


def worker_pid(stack: Stack, model: str) -> int:
    """The process that runs a model; its command line ends with the model's id."""
    commands = descendants(stack.process.pid).items()
    return next(pid for pid, command in commands if "quintet_common.worker" in command and model in command.split())


async def test_a_worker_killed_in_a_stream_ends_it_with_an_error_event_and_comes_back(
    client: httpx2.AsyncClient, stack: Stack
) -> None:
    body = QUESTION | {"stream": True, "max_tokens": 400, "ignore_eos": True}
    events: list[str] = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if not line:
                continue
            events.append(line)
            if len(events) == 5:
                os.kill(worker_pid(stack, CHAT), signal.SIGKILL)
                embedding = await client.post("/v1/embeddings", json={"input": "meanwhile"})
                assert embedding.status_code == 200
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["error"]["code"] == "worker_died"
    assert "data: [DONE]" not in events

    again = await client.post("/v1/chat/completions", json=QUESTION | {"max_tokens": 4})
    assert again.status_code == 200, "the next request waits for the model instead of failing"

    async def back() -> bool:
        return (await card(client))["state"] == "ready"

    await until(back, 120)


async def test_thirty_two_clients_at_once_all_finish(client: httpx2.AsyncClient, stack: Stack) -> None:
    bodies = [QUESTION | {"max_tokens": 12, "seed": seed, "stream": seed % 2 == 0} for seed in range(32)]
    answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
    assert [answer.status_code for answer in answers] == [200] * 32
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.text.endswith("data: [DONE]\n\n") if body["stream"] else answer.json()["choices"]
    await until(lambda: _is_idle(client, stack))


async def _is_idle(client: httpx2.AsyncClient, stack: Stack) -> bool:
    return await running(client, stack) == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_clients_free_their_place(client: httpx2.AsyncClient, stack: Stack, stream: bool) -> None:
    body = QUESTION | {"max_tokens": 4000, "ignore_eos": True, "stream": stream}

    async def leave() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await client.post("/v1/chat/completions", json=body)
                raise AssertionError("4000 tokens in two seconds")

    await asyncio.gather(*(leave() for _ in range(8)))
    await until(lambda: _is_idle(client, stack), 120)


BAD: list[tuple[str, dict[str, Any], int, str | None]] = [
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"messages": "hi"}, 400, "messages"),
    ("/v1/chat/completions", {}, 400, "messages"),
    ("/v1/chat/completions", QUESTION | {"temperature": "hot"}, 400, "temperature"),
    ("/v1/chat/completions", QUESTION | {"max_tokens": -1}, 400, "max_tokens"),
    ("/v1/chat/completions", QUESTION | {"model": "none"}, 404, "model"),
    ("/v1/chat/completions", QUESTION | {"model": 5}, 400, "model"),
    ("/v1/chat/completions", QUESTION | {"model": "emoji-64"}, 404, None),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 20_000}]}, 400, "messages"),
    ("/v1/embeddings", {"input": ""}, 400, "input"),
    ("/v1/embeddings", {"input": []}, 400, "input"),
    ("/v1/embeddings", {"input": "x" * 100_000}, 400, "input"),
    ("/v1/embeddings", {"input": ["a"], "dimensions": 0}, 400, "dimensions"),
    ("/v1/audio/speech", {"input": "", "voice": "alloy"}, 400, "input"),
    ("/v1/audio/speech", {"input": "hello", "voice": "nobody"}, 400, "voice"),
    ("/v1/audio/speech", {"input": "hello", "voice": "alloy", "response_format": "midi"}, 400, "response_format"),
    ("/v1/audio/speech", {"input": "hello", "voice": "alloy", "speed": 9}, 400, "speed"),
    ("/v1/audio/speech", {"input": "x" * 200_001, "voice": "alloy"}, 400, "input"),
    ("/v1/images/generations", {"prompt": "a cat", "size": "0x0"}, 400, "size"),
    ("/v1/images/generations", {"prompt": "a cat", "size": "99999x99999"}, 400, "size"),
    ("/v1/images/generations", {"prompt": "a cat", "n": 0}, 400, "n"),
    ("/v1/images/generations", {}, 400, "prompt"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), BAD)
async def test_bad_requests_get_a_clear_openai_error(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in response.text
    if param:
        assert error["param"] == param


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/audio/speech"])
@pytest.mark.parametrize("content", [b"", b"not json", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"[" * 50_000])
async def test_what_is_no_json_object_is_400(client: httpx2.AsyncClient, path: str, content: bytes) -> None:
    response = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", {"model": CHAT, "messages": []}), ("/v1/embeddings", {"input": "x"})]
)
async def test_a_50_mb_body_is_413(client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> None:
    response = await client.post(path, json=body | {"user": "x" * (50 << 20)})
    assert response.status_code == 413
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,bm8gcGljdHVyZQ==",
        "data:text/plain;base64,aGVsbG8=",
        "http://127.0.0.1:1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "http://localhost/x.png",
        "http://[::1]/x.png",
        "file:///etc/passwd",
        "ftp://example.com/x.png",
        "not a url",
    ],
)
async def test_pictures_that_are_none_or_not_to_be_fetched_are_400(client: httpx2.AsyncClient, url: str) -> None:
    content = [{"type": "text", "text": "Read."}, {"type": "image_url", "image_url": {"url": url}}]
    response = await client.post(
        "/v1/chat/completions", json={"model": "ppocr", "messages": [{"role": "user", "content": content}]}
    )
    assert response.status_code == 400, response.text
    assert "image_url" in response.json()["error"]["param"]


@pytest.mark.parametrize("service", ["router", "chat", "multimodal", "vision", "tts", "embed"])
async def test_every_metric_is_exposed_once_and_well(client: httpx2.AsyncClient, stack: Stack, service: str) -> None:
    url = stack.url if service == "router" else stack.service_url(service)
    families = list(text_string_to_metric_families((await client.get(f"{url}/metrics")).text))
    samples = [(s.name, *sorted(s.labels.items())) for family in families for s in family.samples]
    assert len(samples) == len(set(samples))
    names = {sample[0] for sample in samples}
    assert {"quintet_requests_total", "quintet_e2e_request_latency_seconds_bucket"} <= names


async def test_after_all_that_every_service_lives(client: httpx2.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert {entry["state"] for entry in listed} == {"ready"}
