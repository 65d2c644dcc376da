"""The router as people start it: a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import socket
from typing import Any

import pytest
from quintet_common.models_yml import UpstreamSpec
from quintet_router.access import keyfile
from quintet_router.app import Router
from quintet_router.metrics import FORGET_SECONDS, Metrics
from quintet_router.settings import Settings
from quintet_router.upstream.upstream import Upstream
from router.harness import END, STREAM, Door, FakeUpstream, card, chunk, http, open_door, raw, until

EVENT = b'data: {"x": 1}\n\n'


@asynccontextmanager
async def router_process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Door]]:
    """A router that listens; the door's ``router`` is not to be used."""
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        os.set_inheritable(listening.fileno(), True)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "quintet_router", "--fd", str(listening.fileno()), *arguments,
            pass_fds=[listening.fileno()],
        )  # fmt: skip
        door = Door(None, listening.getsockname()[1])  # type: ignore[arg-type]
    try:
        yield process, door
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "No upstream: give --upstream URL, or upstreams: in the file of --config."),
        (["--upstream", "localhost:1"], "an upstream is like http://host:port, not 'localhost:1'"),
        (["--upstream", "http://a:1", "--upstream", "http://a:1"], "The upstream http://a:1 is given twice."),
        (["--config", "missing.yml"], "missing.yml: cannot be read: No such file or directory."),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str) -> None:
    done = subprocess.run([sys.executable, "-m", "quintet_router", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, line)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, quintet_router.cli; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "quintet_router" in loaded
    assert not loaded & {"torch", "openai", "transformers", "numpy", "PIL"}


def resident_mib(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
async def test_it_stays_small() -> None:
    upstream = FakeUpstream()
    await upstream.start()
    async with router_process("--upstream", upstream.url) as (process, door):
        for _ in range(5):
            await asyncio.gather(*(door.chat(x="y" * 10_000) for _ in range(40)))
        await door.get("/docs")
        assert resident_mib(process.pid) < 80
    await upstream.stop()


async def test_sighup_takes_over_a_good_file_and_refuses_a_bad_one(tmp_path: Path) -> None:
    a, b = FakeUpstream(cards=[card("a")]), FakeUpstream(cards=[card("b")])
    await a.start()
    await b.start()
    config = tmp_path / "models.yml"

    async def serves(name: str) -> bool:
        return name in [entry["id"] for entry in (await door.get("/v1/models")).json["data"]]

    config.write_text(f"upstreams:\n- url: {a.url}\n")
    async with router_process("--config", str(config)) as (process, door):
        assert await serves("a")
        config.write_text(f"upstreams:\n- url: {b.url}\n- ulr: x\n")
        process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.5)
        assert await serves("a")
        config.write_text(f"upstreams:\n- url: {b.url}\n")
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while not await serves("b"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not await serves("a")
        assert process.returncode is None
    await a.stop()
    await b.stop()


async def test_one_line_per_request_when_asked(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async def stream(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        usage = b'data: {"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n'
        writer.write(STREAM + chunk(EVENT) + chunk(usage))
        await asyncio.sleep(0.05)
        writer.write(chunk(b"data: [DONE]\n\n") + END)

    upstream = FakeUpstream(stream)
    await upstream.start()
    keyfile.write(tmp_path / "keys.yml", [keyfile.make_key(name="ann", sha256=keyfile.digest(b"sk").hex())])
    arguments = ["--upstream", upstream.url, "--access-log", "--keys", str(tmp_path / "keys.yml")]
    async with router_process(*arguments) as (process, door):
        sent = await door.chat("x-request-id: r-7", "authorization: Bearer sk", model="m")
        await door.chat("x-request-id: r-8", "authorization: Bearer no")
        process.terminate()
        await process.wait()
    lines = [line.split(" ", 2)[2] for line in capfd.readouterr().err.splitlines() if "quintet.access" in line]
    answered, refused = (json.loads(line) for line in lines)
    assert answered.pop("seconds") >= answered.pop("first_byte_seconds") + 0.03
    assert answered == {
        "request_id": "r-7",
        "service": "router",
        "method": "POST",
        "path": "/chat/completions",
        "key": "ann",
        "model": "m",
        "upstream": upstream.url.removeprefix("http://"),
        "code": 200,
        "queue_seconds": 0.0,
        "bytes": len(sent.body),
        "retries": 0,
        "usage": {"prompt_tokens": 7, "completion_tokens": 1},
    }
    assert (refused["key"], refused["code"], refused["model"], refused["upstream"]) == ("", 401, "", "")
    await upstream.stop()


async def test_one_document_shows_every_service() -> None:
    def document(title: str, path: str, schema: dict[str, Any]) -> bytes:
        reference = {"$ref": "#/components/schemas/Body"}
        operation = {"requestBody": {"content": {"application/json": {"schema": reference}}}, "responses": {}}
        return json.dumps(
            {
                "openapi": "3.1.0",
                "info": {"title": title},
                "paths": {path: {"post": operation}, "/v1/models": {"get": {"summary": "theirs"}}},
                "components": {"schemas": {"Body": schema, "Same": {"type": "string"}}},
            }
        ).encode()

    def serving(body: bytes) -> Any:
        async def behave(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
            writer.write(http(200, body))

        return behave

    chat = FakeUpstream(serving(document("Quintet chat", "/v1/chat/completions", {"type": "object"})), [card("a")])
    embed = FakeUpstream(serving(document("Quintet embed", "/v1/embeddings", {"type": "array"})), [card("b")])
    foreign = FakeUpstream(cards=[{"id": "c"}])
    async with open_door(chat, embed, foreign) as door:
        merged = (await door.get("/openapi.json")).json
        assert (await door.get("/docs")).status == 200
        assert set(merged["paths"]) >= {"/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/models/{model}"}
        assert "summary" in merged["paths"]["/v1/models"]["get"]
        assert merged["paths"]["/v1/models"]["get"]["summary"] != "theirs"
        schemas = merged["components"]["schemas"]
        for path, kind in (("/v1/chat/completions", "object"), ("/v1/embeddings", "array")):
            content = merged["paths"][path]["post"]["requestBody"]["content"]
            name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            assert schemas[name] == {"type": kind}
        assert [name for name in schemas if name.endswith("Same")] == ["Same"]
        for operations in merged["paths"].values():
            for operation in operations.values():
                assert {"4XX", "5XX"} <= operation["responses"].keys()
                assert "422" not in operation["responses"]
        before = len(chat.requests)
        await door.get("/openapi.json")
        assert len(chat.requests) == before
        await embed.stop()
        assert "/v1/embeddings" in (await door.get("/openapi.json")).json["paths"]


async def test_what_is_counted() -> None:
    upstream = FakeUpstream(cards=[card("m", aliases=["n"])])
    async with open_door(upstream) as door:
        for _ in range(3):
            await door.chat()
        await door.chat(model="n")
        await door.chat(model="made up " + "x" * 50)
        who = {"service": "router", "model": "m", "endpoint": "/chat/completions"}
        where = upstream.url.removeprefix("http://")
        assert await door.metric("quintet_requests_total", **who, code="200", upstream=where) == 4
        assert await door.metric("quintet_requests_total", code="404", model="") == 1
        assert await door.metric("quintet_e2e_request_latency_seconds_count", **who) == 4
        assert await door.metric("quintet_e2e_request_latency_seconds_bucket", **who, le="+Inf") == 4
        assert await door.metric("quintet_time_to_first_output_seconds_count", **who) == 4
        assert await door.metric("quintet_router_overhead_seconds_count", **who) == 4
        assert await door.metric("quintet_router_in_flight") == 0
        assert await door.metric("quintet_router_idle_connections") == 1
        assert await door.metric("quintet_router_breaker_state", state="closed") == 1
        assert b"made up" not in (await door.get("/metrics")).body


def test_what_was_counted_of_upstreams_that_have_left_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("quintet_router.metrics.monotonic", lambda: now)
    here = [Upstream(UpstreamSpec(url="http://a:1"), Settings())]
    counted = Metrics(lambda: here)

    def shown() -> set[str]:
        cells = next(iter(counted.collect())).samples
        return {sample.labels["upstream"] for sample in cells}

    for upstream in ("a:1", "b:1", ""):
        counted.cell("m", "/e", upstream).codes[200] = 1
    now += FORGET_SECONDS - 1
    counted.cell("m", "/g", "a:1").codes[200] = 1
    assert shown() == {"a:1", "b:1", ""}
    now += 1
    counted.cell("m", "/h", "a:1").codes[200] = 1
    assert shown() == {"a:1", ""}


async def test_work_beside_the_requests_that_ends_by_a_mistake_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("a mistake")

    router = Router([UpstreamSpec(url="http://127.0.0.1:1")], Settings())
    router.background.append(fail)
    messages = asyncio.Queue[str]()
    news = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, str]:
        await asyncio.sleep(0.01)
        return {"type": next(news)}

    async def send(message: Any) -> None:
        messages.put_nowait(message["type"])

    await router({"type": "lifespan"}, receive, send)
    assert messages.qsize() == 2
    assert "a mistake" in caplog.text


async def test_many_requests_on_few_connections() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream, poll_seconds=60) as door:
        for _ in range(20):
            assert (await door.chat()).status == 200
        assert upstream.connections <= 3  # one for the model list, one or two for the requests
        pool = door.router.fleet.upstreams[0].pool
        pool.idle_limit = 0.1
        await until(lambda: not pool.idle)  # what is idle is closed before the upstream does it


async def test_a_pipeline_of_raw_bytes_never_kills_it() -> None:
    seeded = random.Random(7)
    async with open_door(FakeUpstream()) as door:
        for _ in range(150):
            _, writer = await door.connect()
            data = bytearray(raw("/v1/chat/completions", {"model": "m", "x": "y" * 50}))
            for _ in range(seeded.randint(1, 6)):
                data[seeded.randrange(len(data))] = seeded.randrange(256)
            writer.write(bytes(data[: seeded.randint(1, len(data))]))
            if seeded.random() < 0.5:
                writer.close()
        await asyncio.sleep(0.3)
        assert (await door.chat()).status == 200
        for writer in door.clients:
            writer.transport.abort()
        await until(lambda: not door.router._proxy._active)
        assert door.outstanding == 0
