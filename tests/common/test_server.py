"""A service as a process: what it says between SIGTERM and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from quintet_common import server
from quintet_common.models_yml import Config, ModelSpec
from quintet_common.pool import ModelPool

SERVICE = """
from quintet_common.app import create_app
from quintet_common.pool import ModelPool
from quintet_common.server import main
main("test", {"chat"}, lambda specs: create_app("test", ModelPool(specs, "echo_engine:create_engine", dict), []))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "models.yml").write_text("models: [{id: echo, kind: chat, path: 'embedded:echo'}]\n")
    return tmp_path


@pytest.fixture
def service(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx2.Client]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        options = ["--fd", str(listening.fileno()), "--drain-delay", "1", "--grace", "1"]
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, "models.yml", *options], cwd=folder, pass_fds=[listening.fileno()]
        )
    try:
        with httpx2.Client(base_url=url, timeout=120) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def test_a_port_that_is_taken_is_told_in_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-c", SERVICE, "models.yml", "--port", str(port)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"Port {port} is in use by another program; choose another with --port.\n"


def until_ready(client: httpx2.Client) -> None:
    deadline = time.monotonic() + 60
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


async def test_requests_are_answered_while_the_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk answers only once a request has been."""
    served = threading.Event()
    read: list[str] = []

    def slow(file: str) -> Config:
        assert served.wait(20), "the event loop stood still"
        read.append(file)
        return Config(models=[ModelSpec(id="new", kind="chat", path="embedded:echo")])

    monkeypatch.setattr(server, "load_config", slow)
    pool: ModelPool[Any] = ModelPool([], "echo_engine:create_engine", dict)
    reload = server.Reload("models.yml", {"chat"}, pool)
    both = asyncio.gather(reload(), reload())
    try:
        for _ in range(100):
            await asyncio.sleep(0)  # requests have their turn
        assert not read
        served.set()
        await both
        assert [worker.spec.id for worker in pool] == ["new"]
        assert len(read) == 2
    finally:
        await pool.close()


def test_a_wrong_file_takes_down_nothing_that_runs(
    service: tuple[subprocess.Popen[bytes], httpx2.Client], folder: Path
) -> None:
    process, client = service
    until_ready(client)
    created = client.get("/v1/models").json()["data"][0]["created"]
    (folder / "empty").mkdir()
    for path, args in (("'embedded:echo'", "{kv_memry: 2GB}"), ("./empty", "{}")):
        entry = f"{{id: echo, kind: chat, path: {path}, engine_args: {args}}}"
        (folder / "models.yml").write_text(f"models: [{entry}]\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)  # what must not happen
        (card,) = client.get("/v1/models").json()["data"]
        assert (card["state"], card["created"]) == ("ready", created)
    (folder / "models.yml").write_text("models: [{id: other, kind: chat, path: 'embedded:echo'}]\n")
    process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 60
    while [card["id"] for card in client.get("/v1/models").json()["data"]] != ["other"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_after_sigterm_it_answers_on_and_says_that_it_leaves(
    service: tuple[subprocess.Popen[bytes], httpx2.Client],
) -> None:
    process, client = service
    until_ready(client)
    process.send_signal(signal.SIGTERM)
    while client.get("/ready").status_code == 200:
        time.sleep(0.05)
    assert [card["state"] for card in client.get("/v1/models").json()["data"]] == ["stopping"]
    assert client.get("/health").status_code == 200
    assert process.wait(60) is not None


def test_after_ctrl_c_it_ends_as_if_nothing_was_wrong(service: tuple[subprocess.Popen[bytes], httpx2.Client]) -> None:
    process, client = service
    assert client.get("/health").status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
