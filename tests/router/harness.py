"""A real router on a real socket, upstreams that misbehave as told, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from quintet_common.models_yml import UpstreamSpec
from quintet_router.access.gate import Gate
from quintet_router.app import Router
from quintet_router.inbound import inbound_protocol
from quintet_router.settings import Settings


@dataclass
class Request:
    """What an upstream got. ``headers`` keep their order and repetitions."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.line.split()[1]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool = True

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: str) -> str:
        return self.all(name)[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]


async def read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = [line.split(":", 1) for line in head[1:] if line]
    return head[0], [(key.lower(), value.strip()) for key, value in pairs]


async def read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        return b"".join([chunk async for chunk in read_chunks(reader)])
    return await reader.readexactly(int(headers.get("content-length", 0)))


Behaviour = Callable[[Request, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


def http(status: int, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def echo(request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the path and the length of what came."""
    writer.write(http(200, json.dumps({"path": request.path, "bytes": len(request.body)}).encode()))


class FakeUpstream:
    """A server that lists ``cards`` under ``/v1/models``, and treats every other request as ``behave`` says.

    ``early`` behaves before the body is read.
    """

    def __init__(
        self,
        behave: Behaviour = echo,
        cards: list[dict[str, Any]] | None = None,
        early: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.behave = behave
        self.early = early
        self.tls = tls
        self.cards = [card("m")] if cards is None else cards
        self.requests: list[Request] = []
        self.polls: list[Request] = []
        self.connections = 0
        self.left = 0
        """Requests whose client left before the behaviour had ended."""
        self.writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.host = "127.0.0.1"
        self.port = 0
        self.frozen = False
        """Accept everything and answer nothing, not even polls."""

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections and cut those that are open, as a killed process does."""
        assert self._server is not None
        self._server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while True:
                line, headers = await read_head(reader)
                request = Request(line, headers)
                if self.frozen:
                    (self.polls if request.path.endswith("/models") else self.requests).append(request)
                    await reader.read()  # until the client leaves
                    break
                if request.path.endswith("/models"):
                    self.polls.append(request)
                    writer.write(http(200, json.dumps({"object": "list", "data": self.cards}).encode()))
                    continue
                if not self.early:
                    request.body = await read_body(reader, dict(headers))
                self.requests.append(request)
                await self._behave(request, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.transport.abort()

    async def _behave(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        work = asyncio.ensure_future(self.behave(request, reader, writer))
        if self.early:
            await work
            return
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        left, finished = gone.done(), work.done() and not work.exception()
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
        self.left += left and not finished
        if left or not finished:
            raise ConnectionError


def card(name: str, **more: Any) -> dict[str, Any]:
    own = {"id": name, "object": "model", "created": 1, "owned_by": "test", "kind": "chat"}
    return {**own, "aliases": [], "default": False, "state": "ready", **more}


@dataclass
class Door:
    """A running router."""

    router: Router
    port: int
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, limit: int = 1 << 26) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        self.clients.append(writer)
        return reader, writer

    async def send(self, path: str, body: Any = None, *headers: str, method: str = "POST") -> Any:
        """Send a request on a new connection: (reader, writer)."""
        reader, writer = await self.connect()
        writer.write(raw(path, body, *headers, method=method))
        return reader, writer

    async def ask(self, path: str, body: Any = None, *headers: str, method: str = "POST") -> Response:
        reader, writer = await self.send(path, body, *headers, method=method)
        response = await asyncio.wait_for(read_response(reader), 20)
        writer.close()
        return response

    async def chat(self, *headers: str, model: str = "m", **more: Any) -> Response:
        return await self.ask("/v1/chat/completions", {"model": model, "messages": [], **more}, *headers)

    async def get(self, path: str, *headers: str) -> Response:
        return await self.ask(path, None, *headers, method="GET")

    @property
    def outstanding(self) -> int:
        return sum(upstream.outstanding for upstream in self.router.fleet.upstreams)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum over the samples with these labels."""
        text = (await self.get("/metrics")).body.decode()
        lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(each in line for each in wanted))


def raw(path: str, body: Any = None, *headers: str, method: str = "POST") -> bytes:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: door", *headers]
    if method == "POST" and not any(line.startswith("transfer-encoding") for line in headers):
        lines.append(f"content-length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode() + data


async def read_response(reader: asyncio.StreamReader) -> Response:
    line, headers = await read_head(reader)
    fields = dict(headers)
    parts: list[bytes] = []
    try:
        if fields.get("transfer-encoding") == "chunked":
            async for part in read_chunks(reader):
                parts.append(part)
        else:
            parts.append(await reader.readexactly(int(fields.get("content-length", 0))))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        parts.append(getattr(error, "partial", b""))
        return Response(int(line.split()[1]), headers, b"".join(parts), complete=False)
    return Response(int(line.split()[1]), headers, b"".join(parts))


QUICK: dict[str, Any] = {
    "poll_seconds": 0.3,
    "poll_waiting_seconds": 0.05,
    "watch_seconds": 0.05,
    "start_seconds": 0.0,
    "load_wait": 0.0,
    "connect_timeout": 1.0,
}


@asynccontextmanager
async def open_door(
    *upstreams: FakeUpstream | UpstreamSpec, gate: Gate | None = None, **settings: Any
) -> AsyncIterator[Door]:
    """A router over ``upstreams``, which are started as well; ``settings`` beside quick polls."""
    fakes = [upstream for upstream in upstreams if isinstance(upstream, FakeUpstream)]
    for fake in fakes:
        await fake.start()
    specs = [UpstreamSpec(url=each.url) if isinstance(each, FakeUpstream) else each for each in upstreams]
    chosen = Settings(**{**QUICK, **settings})
    router = Router(specs, chosen, gate)
    config = uvicorn.Config(
        router, port=0, http=inbound_protocol(router.answer, chosen), ws="none", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    door = Door(router, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield door
    finally:
        for client in door.clients:
            client.transport.abort()
        server.should_exit = True
        for fake in fakes:
            await fake.stop()
        await running


def _no_signals() -> Any:
    from contextlib import nullcontext

    return nullcontext()


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Wait for something that happens soon; fails when it does not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
