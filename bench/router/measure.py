"""What is done to a router, and what it did."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import CACHE, cpu_seconds, on_core, resident_mb
from targets import Target

MIB = 1 << 20


@dataclass(frozen=True)
class Load:
    """``chunk_us``: the pause between two events of a stream; None when the answer is not streamed."""

    name: str
    about: str
    connections: int
    seconds: float
    body: str
    chunk_us: int | None = None


LOADS = (
    Load("json1", "one connection, small JSON", 1, 2.0, "small"),
    Load("json64", "64 connections, small JSON", 64, 2.5, "small"),
    Load("big1m", "4 connections, 1 MiB of JSON", 4, 2.0, "picture"),
    Load("stream64", "64 streams, an event each 20 ms", 64, 3.0, "streamed", 20_000),
    Load("stream256", "256 streams, an event each 40 ms", 256, 4.0, "streamed", 40_000),
)
EVENTS_PER_STREAM = 100


@dataclass(frozen=True)
class Sample:
    """One load on one target. ``cpu``: milliseconds per request, or seconds per 100,000 events when streamed.

    ``latency`` is the median of a request, ``event_delay`` of an event's way from the mock to the client, in
    microseconds; ``rate`` is per second; ``busy`` the share of a core that the router used.
    """

    cpu: float
    busy: float
    latency: float
    event_delay: float
    rate: float
    failed: int


@dataclass(frozen=True)
class Behaviour:
    """What a router does with clients that leave or do not read."""

    hung_up: int
    """Clients that left in the middle of a stream."""
    aborts_seen: int
    """How many of those the upstream saw leave."""
    events_per_abort: float
    early: int
    """Clients that left before the answer."""
    early_seen: int
    stalled_mb: float
    """What the upstream could send to each client that does not read."""
    stalled_growth_mb: float
    """What it sent to each in two more seconds."""
    stalled_resident_mb: float
    """Memory that four such clients cost the router."""


def write_bodies() -> None:
    """The requests that the load generator sends."""
    ask: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "Hello!"}]}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * (MIB // 11)}}
    text = {"type": "text", "text": "What is this?"}
    bodies = {
        "small": ask,
        "streamed": {**ask, "stream": True},
        "picture": {"model": "mock", "messages": [{"role": "user", "content": [text, picture]}]},
    }
    for name, body in bodies.items():
        (CACHE / f"{name}.json").write_text(json.dumps(body, separators=(",", ":")))


class Bench:
    """Measures targets in front of the mock that ``mock`` is the first port of; the load runs on ``core``."""

    def __init__(self, mock: int, core: int) -> None:
        self._mock = mock
        self._core = core

    def control(self, **settings: int) -> dict[str, int]:
        """Set what the mock does; its counters."""
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        connection = http.client.HTTPConnection("127.0.0.1", self._mock, timeout=10)
        try:
            connection.request("GET", f"/control?{query}")
            counters: dict[str, int] = json.loads(connection.getresponse().read())
            return counters
        finally:
            connection.close()

    def wait_until_up(self, target: Target, process: subprocess.Popen[bytes] | None) -> None:
        """Raises RuntimeError when the target ends or does not answer in time."""
        deadline = time.monotonic() + target.start_seconds
        problem = "no answer"
        while time.monotonic() < deadline:
            if process is not None and process.poll() is not None:
                raise RuntimeError(f"ended with status {process.returncode}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                problem = f"status {self._ask(target)}"
                if problem == "status 200":
                    return
            time.sleep(0.2)
        raise RuntimeError(f"not up after {target.start_seconds:.0f} s: {problem}")

    def _ask(self, target: Target) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
        headers = {"content-type": "application/json", "authorization": f"Bearer {target.key}"}
        try:
            connection.request("POST", "/v1/chat/completions", (CACHE / "small.json").read_bytes(), headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def run(self, load: Load, target: Target, pid: int | None) -> Sample:
        self.control(chunk_us=load.chunk_us or 0, chunks=EVENTS_PER_STREAM)
        options = ["-w", "0.5"] if load.chunk_us else ["-w", "0.3", "-d", "10"]
        before = cpu_seconds(pid) if pid else 0.0
        out = self._load(target, load.connections, load.seconds, load.body, *options)
        cpu = cpu_seconds(pid) - before if pid else 0.0
        self._settle(pid)
        done = out["events"] if load.chunk_us else out["requests"]
        if not done:
            raise RuntimeError(f"{load.name}: nothing was answered")
        return Sample(
            cpu=cpu / done * (1e5 if load.chunk_us else 1e3),
            busy=cpu / out["seconds"],
            latency=out["latency_us"]["p50"],
            event_delay=out["event_us"]["p50"],
            rate=done / out["seconds"],
            failed=out["errors"] + out["refused"],
        )

    def _load(self, target: Target, connections: int, seconds: float, body: str, *options: str) -> Any:
        tool, path = str(CACHE / "load"), str(CACHE / f"{body}.json")
        command = [tool, "-k", target.key, *options, str(target.port), str(connections), str(seconds), path]
        done = subprocess.run(on_core(self._core, command), capture_output=True, text=True, timeout=60, check=True)
        return json.loads(done.stdout)

    def _settle(self, pid: int | None) -> None:
        """Wait until a router has done with what its clients have left, at most 10 s."""
        if pid is None:
            return
        deadline, used, sent = time.monotonic() + 10, -1.0, -1
        while time.monotonic() < deadline:
            now_used, now_sent = cpu_seconds(pid), self.control()["sent_chunks"]
            if now_used - used < 0.03 and now_sent == sent:
                return
            used, sent = now_used, now_sent
            time.sleep(0.25)

    def behave(self, target: Target, pid: int | None) -> Behaviour:
        return Behaviour(*self._hang_up(target, pid), *self._leave_early(target, pid), *self._stall(target, pid))

    def _hang_up(self, target: Target, pid: int | None) -> tuple[int, int, float]:
        self.control(chunk_us=50_000, chunks=60)
        before = self.control()
        self._load(target, 8, 2.0, "streamed", "-a", "5")
        time.sleep(0.7)
        after = self.control()
        # All leave, the last ones when the load ends; who was connecting then has begun no stream.
        left = after["streams"] - before["streams"]
        aborted = after["aborted"] - before["aborted"]
        self._settle(pid)
        return left, aborted, (self.control()["sent_chunks"] - before["sent_chunks"]) / left

    def _leave_early(self, target: Target, pid: int | None) -> tuple[int, int]:
        self.control(answer_us=3_000_000)
        before = self.control()["aborted"]
        clients = [self._connect(target, "small") for _ in range(20)]
        time.sleep(0.6)
        for client in clients:
            client.close()
        time.sleep(1.0)
        seen = self.control(answer_us=0)["aborted"] - before
        time.sleep(2.0)
        self._settle(pid)
        return len(clients), seen

    def _stall(self, target: Target, pid: int | None) -> tuple[float, float, float]:
        self.control(chunk_us=0, chunks=1_000_000)
        resident, start = resident_mb(pid) if pid else 0.0, self.control()["sent_bytes"]
        clients = [self._connect(target, "streamed", 16384) for _ in range(4)]
        time.sleep(3.0)
        taken = self.control()["sent_bytes"]
        time.sleep(2.0)
        more = self.control()["sent_bytes"]
        growth = (resident_mb(pid) if pid else 0.0) - resident
        for client in clients:
            client.close()
        self.control(chunks=EVENTS_PER_STREAM)
        self._settle(pid)
        return (taken - start) / 4e6, (more - taken) / 4e6, max(0.0, growth)

    def _connect(self, target: Target, body: str, buffer: int | None = None) -> socket.socket:
        """A client that has sent its request and does not read."""
        client = socket.socket()
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.connect(("127.0.0.1", target.port))
        data = Path(CACHE / f"{body}.json").read_bytes()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {target.key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        return client
