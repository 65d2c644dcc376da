"""A service or router that is tiny: it listens as the real ones do, and says what it would serve.

The tests of the supervisor run it under the real modules' names. Every start adds its name to
``$STANDIN_FOLDER/starts``; there, a file ``NAME.crash`` makes it end with its text, ``NAME.deaf`` ignore SIGTERM, and
``NAME.slow`` end so many seconds after it as stand there, and add its name to ``$STANDIN_FOLDER/ended``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

from quintet_common.models_yml import load_config


def main(name: str, kinds: set[str]) -> None:
    folder = Path(os.environ["STANDIN_FOLDER"])
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="?")
    parser.add_argument("--config")
    parser.add_argument("--only", action="append")
    parser.add_argument("--upstream", action="append", default=[])
    parser.add_argument("--fd", type=int)
    parser.add_argument("--lifeline", type=int)
    parser.add_argument("--log-level")
    parser.add_argument("--grace")
    options = parser.parse_args()
    with (folder / "starts").open("a") as starts:
        starts.write(f"{name} {os.getpid()}\n")
    crash = folder / f"{name}.crash"
    if crash.exists():
        sys.exit(crash.read_text() or "ERROR standin the stand-in was told to crash")
    # What a model process is to a real service: something that must not outlive it.
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with (folder / "starts").open("a") as starts:
        starts.write(f"{name}-worker {worker.pid}\n")
    sys.stderr.write("INFO standin an unimportant line\nWARNING standin a line that matters\n")
    serve(name, kinds & set(options.only or kinds), options, folder)


def serve(name: str, kinds: set[str], options: argparse.Namespace, folder: Path) -> None:
    state: dict[str, Any] = {"cards": []}

    def read(*_: object) -> None:
        if options.models:
            specs = load_config(options.models).of_kinds(kinds)
            state["cards"] = [{"id": s.id, "kind": s.kind, "state": "ready", "engine": "standin"} for s in specs]

    def cards() -> list[dict[str, Any]]:
        found = list(state["cards"])
        for upstream in options.upstream:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{upstream}/v1/models", timeout=0.5) as answer:
                found += json.load(answer)["data"]
        return found

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = {"ready": True, "models": {card["id"]: card["state"] for card in cards()}}
            body = json.dumps(ready if self.path == "/ready" else {"object": "list", "data": cards()}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket = socket.socket(fileno=options.fd)
    server.socket.setblocking(True)
    read()

    def stop(*_: int | FrameType | None) -> None:
        slow = folder / f"{name}.slow"
        if slow.exists():
            threading.Timer(float(slow.read_text()), end).start()
        elif not (folder / f"{name}.deaf").exists():
            os._exit(0)

    def end() -> None:
        with (folder / "ended").open("a") as ended:
            ended.write(f"{name}\n")
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, read)
    threading.Thread(target=lambda: (os.read(options.lifeline, 1), os._exit(0)), daemon=True).start()
    server.serve_forever()
