"""Upstreams behind TLS: their certificates are checked, and everything else is as without it."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from quintet_common.models_yml import UpstreamSpec
from quintet_router import cli
from quintet_router.upstream.pool import tls_context
from router.harness import END, STREAM, FakeUpstream, chunk, open_door, until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own authority, for 127.0.0.1; the key is in the same file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl")
    file = tmp_path_factory.mktemp("tls") / "upstream.pem"
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=upstream"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:TRUE"]
    subprocess.run([*command, *names, "-keyout", str(file), "-out", f"{file}.crt"], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def serving(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_requests_streams_and_large_bodies_pass_through_tls(certificate: Path) -> None:
    async def stream(request: Any, _: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(b"data: %d\n\n" % len(request.body)))
        await asyncio.sleep(0.05)
        writer.write(chunk(b"data: [DONE]\n\n") + END)

    upstream = FakeUpstream(stream, tls=serving(certificate))
    async with open_door(upstream, ca_file=str(certificate)) as door:
        for size in (1, 3_000_000):
            response = await door.chat(messages=[{"role": "user", "content": "x" * size}])
            assert response.status == 200
            assert response.body == b"data: %d\n\ndata: [DONE]\n\n" % len(upstream.requests[-1].body)
        assert upstream.connections <= 3  # one for polls: connections are kept


async def test_a_client_that_leaves_is_noticed_behind_tls(certificate: Path) -> None:
    async def never(_: Any, __: Any, ___: Any) -> None:
        await asyncio.sleep(30)

    upstream = FakeUpstream(never, tls=serving(certificate))
    async with open_door(upstream, ca_file=str(certificate)) as door:
        _, writer = await door.send("/v1/chat/completions", {"model": "m"})
        await until(lambda: len(upstream.requests) == 1)
        writer.close()
        await until(lambda: upstream.left == 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_certificate_that_does_not_fit_is_refused(certificate: Path, host: str) -> None:
    """Of an authority that is not trusted; and of one that is, for another name."""
    upstream = FakeUpstream(tls=serving(certificate))
    await upstream.start()
    ca_file = None if host == "127.0.0.1" else str(certificate)
    spec = UpstreamSpec(url=upstream.url.replace("127.0.0.1", host), key="sk-secret")
    async with open_door(spec, ca_file=ca_file) as door:
        assert (await door.chat()).status in (404, 503)
    await upstream.stop()
    assert not upstream.requests
    assert not upstream.polls  # so the key was not sent


def test_a_file_without_certificates_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "none.pem"
    for text in (None, "none"):
        if text:
            file.write_text(text)
        with pytest.raises(ValueError, match="has no certificates"):
            tls_context(str(file))
        with pytest.raises(SystemExit, match="has no certificates"):
            cli.main(["--upstream", "https://127.0.0.1:1", "--ca-file", str(file)])
