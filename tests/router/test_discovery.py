"""Upstreams that come and go while the router runs: by DNS, by a watched file, by SIGHUP."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from quintet_common.models_yml import Config, ConfigError, UpstreamSpec, load_upstreams
from quintet_router.configuration import Reloads, Sources
from quintet_router.discovery import resolve
from router.harness import END, STREAM, Door, FakeUpstream, card, chunk, open_door, read_head, read_response, until


class Names:
    """A name server. ``addresses`` is its answer, None when it cannot be reached."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: frozenset[str] | None = frozenset(addresses)
        self.asked = 0

    async def __call__(self, _: str, __: int) -> frozenset[str]:
        self.asked += 1
        if self.addresses is None:
            raise OSError("no name server")
        return self.addresses


async def pods(*hosts: str) -> list[FakeUpstream]:
    """Upstreams with addresses of their own on the same port."""
    found = [FakeUpstream() for _ in hosts]
    for upstream, host in zip(found, hosts, strict=True):
        upstream.host, upstream.port = host, found[0].port
        await upstream.start()
    return found


async def stop(*upstreams: FakeUpstream) -> None:
    for upstream in upstreams:
        await upstream.stop()


@asynccontextmanager
async def named(names: Names, port: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    monkeypatch.setattr("quintet_router.fleet.resolve", names)
    async with open_door(UpstreamSpec(url=f"dns+http://pods.test:{port}"), dns_seconds=0.05, load_wait=5.0) as door:
        yield door


async def test_every_address_of_a_name_is_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = await pods("127.0.0.1", "127.0.0.2", "127.0.0.3")
    port = upstreams[0].port
    async with named(Names("127.0.0.1", "127.0.0.2"), port, monkeypatch) as door:
        for _ in range(30):
            assert (await door.chat()).status == 200
        assert min(len(each.requests) for each in upstreams[:2]) > 3
        assert upstreams[0].requests[0].all("host") == [f"pods.test:{port}"] == upstreams[0].polls[0].all("host")
        assert [each.label for each in door.router.fleet.upstreams] == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
        assert [each.slot for each in door.router.fleet.upstreams] == [0, 1]
    await stop(*upstreams)


async def test_an_address_that_vanishes_ends_what_it_has_and_gets_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = asyncio.Event()

    async def stream(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(b"data: 1\n\n"))
        await finish.wait()
        writer.write(chunk(b"data: [DONE]\n\n") + END)

    upstreams = await pods("127.0.0.1", "127.0.0.2")
    names = Names("127.0.0.1")
    async with named(names, upstreams[0].port, monkeypatch) as door:
        upstreams[0].behave = stream
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
        await reader.readuntil(b"data: 1\n\n")
        kept = door.router.fleet.upstreams[0]
        names.addresses = frozenset(("127.0.0.2",))
        await until(lambda: door.router.fleet.upstreams != [kept])
        for _ in range(10):
            assert (await door.chat()).status == 200
        assert (len(upstreams[0].requests), len(upstreams[1].requests)) == (1, 10)
        assert await door.metric("quintet_router_in_flight", upstream=kept.label) == 1
        finish.set()
        assert b"[DONE]" in await asyncio.wait_for(reader.readuntil(b"[DONE]"), 20)
        await until(lambda: not door.router.fleet.leaving)
        assert not kept.pool.idle
        await until(lambda: len(upstreams[0].writers) < 2)  # none is left open but that of the polls
    await stop(*upstreams)


async def test_what_stays_keeps_its_connections_when_another_address_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = await pods("127.0.0.1", "127.0.0.2")
    names = Names("127.0.0.1")
    async with named(names, upstreams[0].port, monkeypatch) as door:
        await door.chat()
        kept = door.router.fleet.upstreams[0]
        names.addresses = frozenset(("127.0.0.1", "127.0.0.2"))
        await until(lambda: len(door.router.fleet.upstreams) == 2)
        assert kept in door.router.fleet.upstreams
        assert len(kept.pool.idle) == 1
        assert len(door.router.fleet.catalog.find("m").targets) == 2  # type: ignore[union-attr]
    await stop(*upstreams)


async def test_a_name_server_that_is_away_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = await pods("127.0.0.1")
    names = Names("127.0.0.1")
    async with named(names, upstreams[0].port, monkeypatch) as door:
        names.addresses = None
        asked = names.asked
        await until(lambda: names.asked > asked + 2)
        assert (await door.chat()).status == 200
    await stop(*upstreams)


async def test_a_name_without_addresses_has_had_models_that_may_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = await pods("127.0.0.1")
    names = Names("127.0.0.1")
    async with named(names, upstreams[0].port, monkeypatch) as door:
        names.addresses = frozenset()
        await until(lambda: not door.router.fleet.upstreams)
        assert door.router.fleet.may_come("m") is not None
        assert (await door.get("/v1/models/m")).status == 503
        assert (await door.chat(model="other")).status == 404
        names.addresses = frozenset(("127.0.0.1",))
        assert (await door.chat()).status == 200  # it waits until the model is there
    await stop(*upstreams)


async def test_names_that_a_reload_gives_to_models_without_addresses_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = await pods("127.0.0.1")
    names = Names("127.0.0.1")
    async with named(names, upstreams[0].port, monkeypatch) as door:
        fleet = door.router.fleet
        await until(lambda: bool(fleet.upstreams))
        url = fleet.upstreams[0].spec.url
        await fleet.apply([UpstreamSpec(url=url, prefix="p/", aliases={"new": "m"})])
        names.addresses = frozenset()
        await until(lambda: not fleet.upstreams)
        assert fleet.may_come("p/m") is not None
        assert fleet.may_come("new") is not None
    await stop(*upstreams)


async def test_the_system_is_asked_for_names() -> None:
    assert "127.0.0.1" in await resolve("localhost", 80)
    assert await resolve("127.0.0.7", 80) == {"127.0.0.7"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- http://a:1\n- ulr: x\n", "{file}:2: unknown key 'ulr'; did you mean 'url'?"),
        ("upstreams:\n- {url: http://a:1, balance: prefx}\n", "{file}:2: balance: 'prefx' is not one of"),
        (
            "- {url: http://a:1, discovery: dsn}\n",
            "{file}:1: discovery: 'dsn' is not one of static, dns; did you mean 'dns'?",
        ),
        ("models: []\n", "{file}:1: expected a list of upstreams."),
        ("", "{file}:1: expected a list of upstreams."),
        ("- [", "{file}:1: not valid YAML"),
        ("- 7\n", "{file}:1: "),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "upstreams.yml"
    file.write_text(text)
    with pytest.raises(ConfigError) as wrong:
        load_upstreams(file)
    assert str(wrong.value).startswith(line.format(file=file))
    assert "\n" not in str(wrong.value)


@asynccontextmanager
async def listed(file: Path, *urls: str) -> AsyncIterator[tuple[Door, Reloads]]:
    """A router over the upstreams that ``file`` lists now; then the file is watched."""
    sources = Sources(urls, None, str(file))
    async with open_door(*sources.read_upstreams(sources.read_config())) as door:
        reloads = Reloads(sources, door.router.fleet, 0.05)
        door.router.metrics.more.append(reloads.metrics)
        watching = asyncio.create_task(reloads.watch())
        yield door, reloads
        watching.cancel()


class Applied:
    """In place of a fleet: what it was told."""

    def __init__(self) -> None:
        self.specs: list[list[UpstreamSpec]] = []

    async def apply(self, specs: list[UpstreamSpec], *promised: object) -> None:
        assert not any(promised)
        self.specs.append(specs)


async def test_what_is_read_last_is_taken_over_last(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, read_now = Applied(), threading.Event()
    old, new = [UpstreamSpec(url="http://old:1")], [UpstreamSpec(url="http://new:1")]
    found = iter([old, new])
    reloads = Reloads(Sources([], None, "upstreams.yml"), fleet, 1)  # type: ignore[arg-type]

    def read() -> tuple[Config, list[UpstreamSpec]]:
        specs = next(found)
        if specs is old:
            read_now.wait(30)
        return Config(), specs

    monkeypatch.setattr(reloads, "_read", read)
    first, second = (asyncio.create_task(reloads.reload()) for _ in range(2))
    await asyncio.wait([second], timeout=0.2)
    read_now.set()
    await asyncio.gather(first, second)
    assert fleet.specs == [old, new]


async def test_a_watched_list_is_taken_over_whole_or_not_at_all(tmp_path: Path) -> None:
    a, b = FakeUpstream(cards=[card("a")]), FakeUpstream(cards=[card("b")])
    await a.start()
    await b.start()
    file = tmp_path / "upstreams.json"
    file.write_text(json.dumps([a.url]))
    async with listed(file) as (door, reloads):
        await door.chat(model="a")
        kept = door.router.fleet.upstreams[0]
        assert await door.metric("quintet_config_last_reload_successful") == 1
        file.write_text(json.dumps([b.url, {"url": "ftp://x"}]))
        await until(lambda: not reloads.successful)
        assert await door.metric("quintet_config_last_reload_successful") == 0
        assert door.router.fleet.upstreams == [kept]
        assert (await door.chat(model="a")).status == 200
        new = tmp_path / "new"
        new.write_text(json.dumps([a.url, {"url": b.url, "prefix": "p/"}]))
        os.replace(new, file)  # as Kubernetes swaps a ConfigMap
        await until(lambda: reloads.successful)
        # Those that are new were asked before the swap: there is no moment when their models are unknown.
        assert (await door.chat(model="p/b")).status == 200
        assert door.router.fleet.upstreams[0] is kept
        assert len(kept.pool.idle) == 1
        file.unlink()
        await until(lambda: not reloads.successful)
        assert (await door.chat(model="p/b")).status == 200
        file.write_text("[]")
        await until(lambda: reloads.successful)
        assert (await door.chat(model="a")).status == 404
    await stop(a, b)


async def test_no_request_fails_while_an_upstream_is_swapped_for_another(tmp_path: Path) -> None:
    a, b = FakeUpstream(), FakeUpstream()
    await a.start()
    await b.start()
    file = tmp_path / "upstreams.yml"
    file.write_text(f"- {a.url}\n")
    async with listed(file) as (door, _):
        statuses: list[int] = []
        stopped = asyncio.Event()

        async def client() -> None:
            while not stopped.is_set():
                statuses.append((await door.chat()).status)

        clients = [asyncio.create_task(client()) for _ in range(4)]
        for upstream in (b, a, b):
            file.write_text(f"- {upstream.url}\n")
            await until(lambda url=upstream.url: [each.url for each in door.router.fleet.upstreams] == [url])  # type: ignore[misc]
            await asyncio.sleep(0.1)
        stopped.set()
        await asyncio.gather(*clients)
        assert set(statuses) == {200}
        assert not door.router.fleet.leaving or door.outstanding == 0
    await stop(a, b)


async def test_an_open_stream_survives_the_removal_of_its_upstream() -> None:
    async def stream(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for number in range(6):
            writer.write(chunk(b"data: %d\n\n" % number))
            await asyncio.sleep(0.05)
        writer.write(END)

    a, b = FakeUpstream(stream), FakeUpstream()
    await b.start()
    async with open_door(a) as door:
        reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
        await until(lambda: len(a.requests) == 1)
        await door.router.fleet.apply([UpstreamSpec(url=b.url)])
        response = await asyncio.wait_for(read_response(reader), 20)
        assert response.complete
        assert response.body.endswith(b"data: 5\n\n")
    await stop(b)


async def test_aliases_of_other_servers() -> None:
    a, b = FakeUpstream(cards=[{"id": "big-1"}, {"id": "small"}]), FakeUpstream(cards=[{"id": "big-2"}])
    await a.start()
    await b.start()
    specs = [
        UpstreamSpec(url=a.url, prefix="a/", aliases={"gpt-4o": "big-1", "tiny": "small", "none": "missing"}),
        UpstreamSpec(url=b.url, aliases={"gpt-4o": "big-2"}),
    ]
    async with open_door(*specs) as door:
        for number in range(20):
            assert (await door.chat(model="gpt-4o", n=number)).status == 200
        assert {request.json["model"] for request in a.requests} == {"big-1"}
        assert {request.json["model"] for request in b.requests} == {"big-2"}
        assert min(len(a.requests), len(b.requests)) > 2
        await door.chat(model="tiny")
        assert a.requests[-1].json["model"] == "small"
        assert (await door.chat(model="none")).status == 404
        models = {entry["id"]: entry.get("aliases") for entry in (await door.get("/v1/models")).json["data"]}
        assert models == {"a/big-1": ["gpt-4o"], "a/small": ["tiny"], "big-2": ["gpt-4o"]}
        assert (await door.get("/v1/models/tiny")).json["id"] == "a/small"
    await stop(a, b)


async def test_addresses_that_change_all_the_time_disturb_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = await pods("127.0.0.1", "127.0.0.2")
    names = Names("127.0.0.1")
    async with named(names, upstreams[0].port, monkeypatch) as door:
        for number in range(12):
            names.addresses = frozenset((("127.0.0.1", "127.0.0.2")[number % 2],))
            reader, _ = await door.send("/v1/chat/completions", {"model": "m"})
            line, _ = await asyncio.wait_for(read_head(reader), 20)
            assert " 200 " in line
            await asyncio.sleep(0.06)
    await stop(*upstreams)
