"""The embed service as it is run: its own process, a worker per model, on a loopback port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import httpx2
import pytest
from embed.embed_models import write_embedder, write_heads, write_reranker

CONFIG = """
models:
  - {{id: other-minilm, kind: embedding, path: "/no/such/model"}}
  - {{id: minilm, aliases: [bge-m3, org/mini lm], kind: embedding, path: "embedded:all-minilm-l6-v2", default: true}}
  - {{id: tiny-m3, kind: embedding, path: "{m3}", dtype: float32}}
  - {{id: tiny-reranker, kind: rerank, path: "{reranker}", dtype: float32}}
"""


class Service(NamedTuple):
    url: str
    pid: int
    reranker: str
    """Directory of the model tiny-reranker."""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("embed")
    reranker, m3 = write_reranker(folder / "reranker"), write_embedder(folder / "m3")
    write_heads(m3)
    config = folder / "models.yml"
    config.write_text(CONFIG.format(reranker=reranker, m3=m3))
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        os.set_inheritable(listener.fileno(), True)
        command = [sys.executable, "-m", "quintet_embed", str(config), "--fd", str(listener.fileno())]
        environment = {**os.environ, "QUINTET_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdout=log, stderr=log, env=environment, stdin=subprocess.DEVNULL
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            _wait_until_loaded(url)
            yield Service(url, process.pid, reranker)
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_loaded(url: str) -> None:
    for _ in range(3000):
        cards = httpx2.get(f"{url}/v1/models", timeout=120).json()["data"]
        if all(card["state"] in ("ready", "failed") for card in cards):
            return
        time.sleep(0.2)
    raise AssertionError(f"not loaded within ten minutes: {cards}")
