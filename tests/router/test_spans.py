"""Traces: a span per request between the caller's and the service's, and none where none are wanted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from quintet_router.app import Router
from quintet_router.spans import Spans, endpoint_from
from router.harness import FakeUpstream, Request, http, open_door, read_body, read_head
from router.test_process import router_process

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_span_stands_between_the_callers_and_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    spans = Spans(exporter)
    monkeypatch.setattr("router.harness.Router", lambda specs, settings, gate: Router(specs, settings, gate, spans))

    async def answer(request: Request, _: Any, writer: asyncio.StreamWriter) -> None:
        status = 500 if request.json.get("fail") else 200
        writer.write(http(status, b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'))

    upstream = FakeUpstream(answer)
    async with open_door(upstream) as door:
        await door.chat(f"traceparent: {PARENT}", "tracestate: a=1", "x-request-id: r-1")
        await door.chat(fail=True)
        await door.get("/v1/audio/voices")
    first, second, third = exporter.get_finished_spans()  # the router's end has sent them
    assert f"{first.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{first.parent.span_id:016x}" == PARENT.split("-")[2]
    passed_on = f"00-{first.context.trace_id:032x}-{first.context.span_id:016x}-01"
    assert upstream.requests[0].all("traceparent") == [passed_on]
    assert upstream.requests[0].all("tracestate") == ["a=1"]
    assert [span.name for span in (first, third)] == ["POST /chat/completions", "GET /audio/voices"]
    for name, value in {
        "http.response.status_code": 200,
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "quintet.request_id": "r-1",
        "server.address": upstream.url.removeprefix("http://"),
    }.items():
        assert first.attributes[name] == value
    assert second.parent is None
    assert second.status.status_code.name == "ERROR"
    assert upstream.requests[1].all("traceparent")[0].split("-")[1] == f"{second.context.trace_id:032x}"


async def test_spans_reach_a_collector() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    got: list[tuple[str, bytes]] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, headers = await read_head(reader)
        got.append((line, await read_body(reader, dict(headers))))
        writer.write(http(200, b"", kind="application/x-protobuf"))

    collector = await asyncio.start_server(collect, "127.0.0.1", 0)
    port = collector.sockets[0].getsockname()[1]
    upstream = FakeUpstream()
    await upstream.start()
    async with router_process("--upstream", upstream.url, "--traces", f"http://127.0.0.1:{port}") as (process, door):
        assert (await door.chat("x-request-id: find-me")).status == 200
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)
    assert [line for line, _ in got] == ["POST /v1/traces HTTP/1.1"]
    assert b"find-me" in got[0][1]
    await upstream.stop()
    collector.close()


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = "import sys, quintet_router.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"opentelemetry.sdk", "opentelemetry.exporter", "limits", "redis"}


def test_where_spans_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert endpoint_from(None) is None
    assert endpoint_from("http://c:4318/") == "http://c:4318/v1/traces"
    assert endpoint_from("http://c:4318/x/traces") == "http://c:4318/x/traces"
    with pytest.raises(ValueError, match="--traces is like"):
        endpoint_from("c:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://e:4318")
    assert endpoint_from(None) == "http://e:4318/v1/traces"
