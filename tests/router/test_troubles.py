"""Upstreams that cannot be used are told, with the reason: in the log once, and where one looks."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path

import pytest
from quintet_common.models_yml import UpstreamSpec
from quintet_router.access.gate import Gate
from quintet_router.access.keyring import Keyring
from router.harness import FakeUpstream, http, open_door, until


class Answering(FakeUpstream):
    """Its model list is answered with ``answer``, as it is; with None as usual."""

    def __init__(self, answer: bytes | None) -> None:
        super().__init__()
        self.answer = answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.answer is None:
            await super()._serve(reader, writer)
            return
        self.connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        await writer.drain()
        writer.close()


CLOSE = "connection: close"


def refusing(status: int) -> bytes:
    return http(status, b"{}", CLOSE)


def asked_again(upstream: FakeUpstream, before: int) -> bool:
    return upstream.connections > before


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("answer", "key", "path", "says"),
    [
        (refusing(401), "wrong", "", "it refuses the key (401)"),
        (refusing(403), None, "", "it wants a key (403)"),
        (refusing(404), None, "", "it has no /v1/models (404)"),
        (refusing(404), None, "/api/v3", "it has no /api/v3/models (404)"),
        (refusing(502), None, "", "it answers 502 to /v1/models"),
        (http(200, b"<html>", CLOSE), None, "", "what it answers to /v1/models is no list of models"),
        (b"SSH-2.0-OpenSSH\r\n", None, "", "it gives no answer in HTTP"),
    ],
)
async def test_the_reason_is_told_once(
    answer: bytes, key: str | None, path: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Answering(answer)
    await upstream.start()
    spec = UpstreamSpec(url=upstream.url + path, key=key)
    async with open_door(spec, absent_seconds=0.0) as door:
        await until(lambda: bool(warnings(caplog)))
        at = door.router.fleet.upstreams[0]
        assert (await door.get("/health")).json == {"status": "ok", "upstreams": {at.label: says}}
        asked = upstream.connections
        await until(lambda: upstream.connections > asked + 3)
        assert warnings(caplog) == [f"{at.label} cannot be used: {says}"]
    await upstream.stop()


async def test_nothing_that_listens_is_told_when_it_had_time_to_start(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with open_door(UpstreamSpec(url=f"http://127.0.0.1:{port}"), absent_seconds=0.7) as door:
        label = f"127.0.0.1:{port}"
        assert (await door.get("/health")).json["upstreams"] == {label: "nothing listens there"}
        await asyncio.sleep(0.2)
        assert warnings(caplog) == []
        await until(lambda: bool(warnings(caplog)))
        assert warnings(caplog) == [f"{label} cannot be used: nothing listens there"]


async def test_a_name_that_has_no_address_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with open_door(UpstreamSpec(url="http://no-such-name.invalid"), absent_seconds=0.0):
        await until(lambda: warnings(caplog) == ["no-such-name.invalid cannot be used: its name has no address"])


async def test_another_reason_is_told_and_so_is_the_end_of_it(caplog: pytest.LogCaptureFixture) -> None:
    upstream = Answering(refusing(401))
    await upstream.start()
    async with open_door(UpstreamSpec(url=upstream.url, key="k")) as door:
        label = door.router.fleet.upstreams[0].label
        for answer in (refusing(404), refusing(401), None):
            asked, upstream.answer = upstream.connections, answer
            await until(partial(asked_again, upstream, asked + 2 if answer else asked))
        await until(lambda: len(warnings(caplog)) > 2)
        assert warnings(caplog) == [
            f"{label} cannot be used: it refuses the key (401)",
            f"{label} cannot be used: it has no /v1/models (404)",
            f"{label} is up: 1 model",
        ]
        assert (await door.get("/health")).json == {"status": "ok"}
        upstream.answer = refusing(401)
        next(iter(upstream.writers)).transport.abort()  # which was kept alive
        await until(lambda: len(warnings(caplog)) > 3)
        assert warnings(caplog)[3:] == [f"{label} is down: it refuses the key (401)"]
    await upstream.stop()


async def test_with_keys_health_names_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.yml"
    file.write_text("keys: []\n")
    async with open_door(UpstreamSpec(url="http://127.0.0.1:9"), gate=Gate(Keyring(file))) as door:
        assert (await door.get("/health")).json == {"status": "ok"}
