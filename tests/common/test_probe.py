"""The probe of HEALTHCHECK: right in what it says, and light enough to be asked every few seconds."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from quintet_common.probe import probe


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()
        self.wfile.write(b'{"models": {"a": "loading"}}')

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_only_200_is_healthy_and_the_answer_is_shown(url: str) -> None:
    assert probe(f"{url}/ready") == (True, '200 {"models": {"a": "loading"}}')
    assert probe(f"{url}/other") == (False, '503 {"models": {"a": "loading"}}')


def test_no_answer_is_a_reason() -> None:
    healthy, said = probe("http://127.0.0.1:1/ready")
    assert not healthy
    assert "refused" in said


def test_as_a_program_it_tells_by_its_status(url: str) -> None:
    for path, status in (("/ready", 0), ("/other", 1)):
        command = [sys.executable, "-P", "-m", "quintet_common.probe", url + path]
        assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=120, check=False).returncode == status


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, quintet_common.probe; print([m for m in ('asyncio', 'fastapi', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
