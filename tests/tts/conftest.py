"""The real embedded voice: once as an engine in this process, once as a service on a loopback port."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
import uvicorn
from quintet_common.models_yml import ModelSpec
from quintet_tts.app import create
from quintet_tts.backends import Backend, embedded
from quintet_tts.voices import Catalogue

SPEC = ModelSpec(id="hibari", kind="tts", path="embedded:hibari", default=True, aliases=["tts-1"], max_waiting=64)
Model = tuple[Catalogue, dict[str, Backend]]


@pytest.fixture(scope="session")
def model() -> Model:
    """The voices and the engines behind them, loaded once in this process, without those of extras."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_better", lambda _report: {})
        return embedded.load(SPEC, lambda _fraction, _note: None)


@pytest.fixture(scope="session")
def origin() -> Iterator[str]:
    """Where the service with the real model listens."""
    os.environ.setdefault("QUINTET_THREADS", "2")
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create([SPEC]), log_level="critical", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    wait_ready(address)
    yield address
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="session")
def client(origin: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def http(origin: str) -> Iterator[httpx2.Client]:
    """The service without an SDK between."""
    with httpx2.Client(base_url=origin, timeout=120) as plain:
        yield plain


def wait_ready(address: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx2.get(f"{address}/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{address} is not ready")


@pytest.fixture
def worker_dir() -> Path:
    return Path(__file__).parent
