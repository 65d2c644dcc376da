"""The service around the model: what its process imports, clients that leave, a worker that dies, the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from tts.conftest import wait_ready

STORY = "It was a fine day. The sun stood over the hills. Nobody was about. Then a door opened. " * 200
CONFIG = """
models:
  - {id: hibari, kind: tts, path: "embedded:hibari", default: true}
"""


def test_the_api_side_imports_no_engine() -> None:
    code = (
        "import sys, quintet_tts.app, quintet_tts.api;"
        "sys.exit(str({'torch', 'numpy', 'av', 'onnxruntime', 'hibari', 'scipy'} & set(sys.modules) or ''))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""


def gauge(http: httpx2.Client, name: str) -> float:
    """Of this service's model: the services of other tests in this process report to the same registry."""
    lines = http.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f'quintet_{name}{{model="hibari"')).split()[-1])


def eventually(true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/audio/speech"])
def test_a_client_who_leaves_stops_costing(http: httpx2.Client, path: str) -> None:
    """By the first sound on /v1; the bare path, which answers whole, by the client's patience."""
    before = gauge(http, "characters_total") if 'characters_total{model="hibari"' in http.get("/metrics").text else 0.0
    try:
        body = {"input": STORY[:19_000], "voice": "heart"}
        with http.stream("POST", path, json=body, timeout=httpx2.Timeout(60, read=0.4)) as answer:
            next(answer.iter_raw())
    except httpx2.ReadTimeout:
        pass
    time.sleep(1.2)  # the worker tells its gauges once a second
    assert eventually(lambda: gauge(http, "num_requests_running") == 0)
    assert gauge(http, "characters_total") - before < 15_000


def test_a_client_who_does_not_read_makes_the_engine_rest(http: httpx2.Client, origin: str) -> None:
    """An hour of sound is not made, and kept in memory, for one who takes none of it; nor are others kept waiting."""
    # The first report of the engine comes after a second.
    assert eventually(lambda: 'quintet_num_requests_waiting{model="hibari"' in http.get("/metrics").text, 30)
    spoken = counter(http, "audio_seconds_total")
    with socket.create_connection(("127.0.0.1", int(origin.rsplit(":", 1)[1]))) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        body = json.dumps({"input": STORY * 8, "voice": "heart", "response_format": "pcm", "speed": 0.5}).encode()
        head = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        lazy.sendall(b"POST /v1/audio/speech HTTP/1.1\r\n" + head.encode() + body)
        assert eventually(lambda: gauge(http, "num_requests_waiting") >= 1, 60)  # it rests
        made = counter(http, "audio_seconds_total")
        assert made - spoken < 600  # what the sockets' buffers hold is some minutes of sound
        assert http.post("/v1/audio/speech", json={"input": "And me?"}).status_code == 200
        assert counter(http, "audio_seconds_total") - made < 10
        taken = 0
        while taken < 2 << 20:  # now it reads, and the engine goes on
            taken += len(lazy.recv(1 << 18))
        assert eventually(lambda: counter(http, "audio_seconds_total") > made + 10)
    assert eventually(lambda: gauge(http, "num_requests_waiting") == gauge(http, "num_requests_running") == 0)


def counter(http: httpx2.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f'quintet_{name}{{model="hibari"'))


def test_sixty_four_at_once_of_whom_a_third_leaves(http: httpx2.Client, origin: str) -> None:
    expected = http.post("/v1/audio/speech", json={"input": "All of us. Every one.", "seed": 1}).content

    async def client(number: int) -> bytes | None:
        async with httpx2.AsyncClient(base_url=origin, timeout=60) as many:
            leaves = number % 3 == 0
            body = {"input": STORY[:3000] if leaves else "All of us. Every one.", "seed": 1}
            async with many.stream("POST", "/v1/audio/speech", json=body) as answer:
                assert answer.status_code == 200
                if leaves:
                    await anext(answer.aiter_raw())
                    return None
                return await answer.aread()

    async def all_of_them() -> list[bytes | None]:
        return await asyncio.gather(*(client(number) for number in range(64)))

    heard = asyncio.run(all_of_them())
    assert [sound for sound in heard if sound is not None] == [expected] * 42
    assert eventually(lambda: gauge(http, "num_requests_running") == 0)


def test_a_worker_that_dies_cuts_the_stream_and_comes_back(tmp_path: Path) -> None:
    with Service(tmp_path) as service, httpx2.Client(base_url=service.address, timeout=120) as http:
        wait_ready(service.address)
        with pytest.raises(httpx2.RemoteProtocolError):
            hear_until_death(http, service, {})
        answer = http.post("/v1/audio/speech", json={"input": "Are you there?"})
        if answer.status_code != 200:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
            assert answer.headers["retry-after"]
        wait_ready(service.address)
        assert http.post("/v1/audio/speech", json={"input": "Are you there?"}).content
        assert b'"code":"worker_died"' in hear_until_death(http, service, {"stream_format": "sse"})


def hear_until_death(http: httpx2.Client, service: Service, more: dict[str, str]) -> bytes:
    """Kill the model's process after the first sound; what came after it."""
    with http.stream("POST", "/v1/audio/speech", json={"input": STORY[:19_000], **more}) as answer:
        sound = answer.iter_raw()
        next(sound)
        os.kill(service.worker_pid(), signal.SIGKILL)
        return b"".join(sound)


class Service:
    """``python -m quintet_tts`` on a free port."""

    def __init__(self, folder: Path) -> None:
        (folder / "models.yml").write_text(CONFIG)
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quintet_tts", "models.yml", "--port", str(port), "--log-level", "error"],
            cwd=folder,
            env={**os.environ, "QUINTET_THREADS": "1"},
        )

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(20) in (0, -signal.SIGTERM)

    def worker_pid(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
