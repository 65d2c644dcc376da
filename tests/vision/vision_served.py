"""The vision service as people run it: on a loopback port, with its worker processes, for as long as a block lasts."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from quintet_common.models_yml import ModelSpec
from quintet_vision.app import create


@contextmanager
def served(*specs: ModelSpec, seconds: float = 600) -> Iterator[str]:
    """The base URL of a service with ``specs``, all of them loaded."""
    app = create(list(specs))
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + seconds
        while not (server.started and app.state.pool.ready):
            failed = [worker.note for worker in app.state.pool if worker.state == "failed"]
            assert not failed, failed
            assert time.monotonic() < until, "the models did not load"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
