"""Serve an app on a free port of the loopback for a test, in a thread, the way it is served in earnest."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import uvicorn
from fastapi import FastAPI


@contextlib.contextmanager
def serving(app: FastAPI, ready_seconds: float = 600, state: str = "ready") -> Iterator[str]:
    """The URL of ``app``, once all of its models are in ``state``: seconds, or minutes where much else runs.

    Raises RuntimeError at once, with the reason, for a model that has failed instead.
    """
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        _wait_until(state, url, ready_seconds, thread)
        yield url
    finally:
        server.should_exit = True
        thread.join(60)
        sock.close()


def _wait_until(state: str, url: str, seconds: float, server: threading.Thread) -> None:
    deadline = time.monotonic() + seconds
    answer = "no answer"
    while time.monotonic() < deadline and server.is_alive():
        with contextlib.suppress(httpx2.TransportError):
            response = httpx2.get(f"{url}/ready", timeout=60)
            states = set(response.json()["models"].values())
            if states <= {state}:
                return
            if "failed" in states - {state}:
                raise RuntimeError(f"models have failed: {httpx2.get(f'{url}/health').json()['failed']}")
            answer = response.text
        time.sleep(0.05)
    raise TimeoutError(f"the models did not get {state}: {answer}")
