"""``quintet serve`` over servers that are not its own, some of which cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from stack import CHAT, TTS, Stack

KEY = "sk-right"
MODELS = f"""models:
  - {{id: {TTS}, kind: tts, path: "embedded:{TTS}"}}
  - {{id: {CHAT}, kind: chat, path: "embedded:{CHAT}"}}
"""


class Elsewhere(BaseHTTPRequestHandler):
    """Someone else's server, which wants a key."""

    def do_GET(self) -> None:
        right = self.headers.get("authorization") == f"Bearer {KEY}"
        body = json.dumps({"object": "list", "data": [{"id": "far", "object": "model"}]} if right else {}).encode()
        self.send_response(200 if right else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, str]]:
    """Where two of them listen."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    good, wrong = (f"127.0.0.1:{server.server_port}" for server in servers)
    yield good, wrong
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def stack(tmp_path: Path, elsewhere: tuple[str, str]) -> Iterator[Stack]:
    good, wrong = elsewhere
    file = tmp_path / "models.yml"
    upstreams = f"[{{url: 'http://{good}', key: {KEY}}}, {{url: 'http://{wrong}', key: sk-wrong}}, {{url: 'http://127.0.0.1:9'}}]"
    file.write_text(f"{MODELS}upstreams: {upstreams}\n")
    running = Stack(tmp_path, "--only", "tts", config=file)
    yield running
    running.stop()


def test_what_cannot_be_used_is_told_and_what_is_left_out_is_not_waited_for(
    stack: Stack, elsewhere: tuple[str, str]
) -> None:
    good, wrong = elsewhere
    told, table = stack.text(), [" ".join(line.split()) for line in stack.text().splitlines()]
    refused, dead = "it refuses the key (401)", "nothing listens there"
    assert told.count(f"{wrong} cannot be used: {refused}") == 1
    assert f"{good} upstream up, 1 model" in table
    assert f"{wrong} upstream cannot be used: {refused}" in table
    assert f"127.0.0.1:9 upstream cannot be used: {dead}" in table

    command = [str(Path(sys.executable).with_name("quintet")), "models", "--url", stack.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()[2:]]
    assert rows[-2:] == [
        f"{wrong} upstream cannot be used: {refused}",
        f"127.0.0.1:9 upstream cannot be used: {dead}",
    ]
    assert {row.split()[0] for row in rows[:-2]} == {TTS, "far"}

    body = json.dumps({"model": CHAT, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    asked = urllib.request.Request(f"{stack.url}/v1/chat/completions", body, {"content-type": "application/json"})
    began = time.monotonic()
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(asked, timeout=60)
    assert refusal.value.code == 404
    assert time.monotonic() - began < 10
    assert "models of kind 'chat' are not served here" in refusal.value.read().decode()
