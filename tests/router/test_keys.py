"""Who gets in: keys, what they open, and how much they may ask."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from quintet_router.access import keyfile
from quintet_router.access import keyring as keyring_module
from quintet_router.access.gate import Gate
from quintet_router.access.keyfile import Key, KeyFileError
from quintet_router.access.keyring import Client, Keyring
from quintet_router.access.rates import Window
from quintet_router.configuration import Reloads, Sources
from router.harness import Door, FakeUpstream, Response, card, http, open_door, until
from router.test_routing import form

HASH = "a" * 64


def key(name: str, **more: Any) -> Key:
    """Its secret is ``sk-NAME``."""
    return keyfile.make_key(name=name, sha256=keyfile.digest(f"sk-{name}".encode()).hex(), **more)


@asynccontextmanager
async def locked_door(
    tmp_path: Path, keys: list[Key], *upstreams: FakeUpstream, **settings: Any
) -> AsyncIterator[Door]:
    file = tmp_path / "keys.yml"
    keyfile.write(file, keys)
    async with open_door(*upstreams, gate=Gate(Keyring(file)), **settings) as door:
        yield door


def bearer(name: str) -> str:
    return f"authorization: Bearer sk-{name}"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "authorization: Bearer ",
        "authorization: Bearer sk-alic",
        "authorization: Bearer sk-alice2",
        "authorization: Basic sk-alice",
        "x-api-key: sk-bob",
        "authorization: sk-alice",
    ],
)
async def test_without_a_right_key_nothing_is_done(tmp_path: Path, header: str | None) -> None:
    upstream = FakeUpstream()
    async with locked_door(tmp_path, [key("alice")], upstream) as door:
        headers = [header] if header else []
        for response in (await door.chat(*headers), await door.get("/v1/models", *headers)):
            assert (response.status, response.error["code"]) == (401, "invalid_api_key")
            assert response.error["type"] == "authentication_error"
            assert response.get("www-authenticate") == "Bearer"
            assert response.get("x-request-id")
    assert not upstream.requests


async def test_a_right_key_opens_and_goes_no_further(tmp_path: Path) -> None:
    upstream = FakeUpstream()
    async with locked_door(tmp_path, [key("alice"), key("bob")], upstream) as door:
        for header in (bearer("alice"), "authorization: bearer  sk-bob", "x-api-key: sk-alice"):
            assert (await door.chat(header)).status == 200
            assert (await door.get("/v1/models", header)).status == 200
        assert (await door.get("/health")).status == (await door.get("/ready")).status == 200
        assert "models" not in (await door.get("/ready")).json
    assert not any(request.all("authorization") + request.all("x-api-key") for request in upstream.requests)


async def test_a_refused_upload_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with locked_door(tmp_path, [key("alice")], FakeUpstream()) as door:
        reader, writer = await door.connect()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n")
        assert b" 401 " in await asyncio.wait_for(reader.readline(), 20)


async def test_a_key_uses_its_models_only_and_learns_of_no_others(tmp_path: Path) -> None:
    cards = [card("qwen-7b"), card("org/secret"), card("m", aliases=["gpt-4o"], default=True)]
    upstream = FakeUpstream(cards=cards)
    keys = [key("q", models=["qwen*"]), key("a", models=["gpt-4o"]), key("none", models=[]), key("all")]
    async with locked_door(tmp_path, keys, upstream) as door:

        async def ask(who: str, model: str) -> Response:
            return await door.chat(bearer(who), model=model)

        async def listed(who: str) -> list[str]:
            return [entry["id"] for entry in (await door.get("/v1/models", bearer(who))).json["data"]]

        assert (await ask("q", "qwen-7b")).status == 200
        hidden, missing = await ask("q", "org/secret"), await ask("q", "org/nothing")
        assert hidden.status == missing.status == 404
        assert hidden.error["message"].replace("secret", "nothing") == missing.error["message"]
        assert hidden.error["code"] == "model_not_found"
        assert (await ask("a", "m")).status == (await ask("a", "gpt-4o")).status == 200
        assert (await ask("none", "m")).status == 404
        assert (await door.ask("/v1/chat/completions", {"messages": []}, bearer("q"))).status == 404
        assert (await door.ask("/v1/chat/completions", {"messages": []}, bearer("a"))).status == 200
        assert [await listed(who) for who in ("q", "a", "none")] == [["qwen-7b"], ["m"], []]
        assert len(await listed("all")) == 3
        assert (await door.get("/v1/models/org/secret", bearer("q"))).status == 404
        assert (await door.get("/v1/models/org/secret", bearer("all"))).status == 200
    assert len(upstream.requests) == 4


async def test_a_form_cannot_name_an_allowed_model_first_and_another_later(tmp_path: Path) -> None:
    """Services take the last of two fields; what is after the scanned part must be looked at, too."""
    upstream = FakeUpstream(cards=[card("mine", kind="image"), card("theirs", kind="image")])
    fields = ("model", b"mine", None), ("image", b"x" * 600_000, "a.png")
    async with locked_door(tmp_path, [key("a", models=["mine"])], upstream) as door:
        body, kind = form(*fields, ("model", b"theirs", None))
        response = await door.ask("/v1/images/edits", body, kind, bearer("a"))
        assert (response.status, response.error["param"]) == (400, "model")
        body, kind = form(fields[1], ("model", b"theirs", None))
        assert (await door.ask("/v1/images/edits", body, kind, bearer("a"))).status == 404
        body, kind = form(*fields)
        assert (await door.ask("/v1/images/edits", body, kind, bearer("a"))).status == 200
        assert upstream.requests[-1].body == body
        body = b'{"model":"mine","mod\\u0065l":"theirs"}'
        assert (await door.ask("/v1/images/generations", body, bearer("a"))).status == 404
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "secret", "model": "m"}',
        b'{"model": "secret", "x": {"model": 1}, "model": "m", "y": [1, 2]}',
        b'{"mod\\u0065l": "secret", "model": "m"}',
        b'{"model": "secret", "mod\\u0065l": "m"}',
    ],
)
async def test_a_body_cannot_name_one_model_here_and_another_there(tmp_path: Path, body: bytes) -> None:
    upstream = FakeUpstream(cards=[card("m"), card("secret")])
    async with locked_door(tmp_path, [key("a", models=["m"])], upstream) as door:
        assert (await door.ask("/v1/chat/completions", body, bearer("a"))).status == 200
        assert (await door.ask("/v1/chat/completions", body[:-1] + b', "model": "secret"}', bearer("a"))).status == 404
        response = await door.ask("/v1/classify", {"input": "x"}, bearer("a"))
        assert (response.status, response.error["param"]) == (400, "model")
    pairs = json.loads(upstream.requests[0].body, object_pairs_hook=list)
    assert [value for name, value in pairs if name == "model"] == ["m"]
    assert len(upstream.requests) == 1


async def test_pictures_with_names_that_cannot_be_guessed_open_in_a_browser(tmp_path: Path) -> None:
    upstream = FakeUpstream(cards=[card("i", kind="image")])
    async with locked_door(tmp_path, [key("a", models=[])], upstream) as door:
        assert (await door.get("/v1/images/files/b.png")).status == 200


async def test_requests_per_minute(tmp_path: Path) -> None:
    async with locked_door(tmp_path, [key("a", requests_per_minute=3), key("b")], FakeUpstream()) as door:
        left = [(await door.chat(bearer("a"))).get("x-ratelimit-remaining-requests") for _ in range(3)]
        assert left == ["2", "1", "0"]
        response = await door.chat(bearer("a"))
        assert (response.status, response.error["code"]) == (429, "rate_limit_exceeded")
        assert response.error["type"] == "rate_limit_error"
        assert 50 <= int(response.get("retry-after")) <= 60
        assert response.get("x-ratelimit-limit-requests") == "3"
        assert response.get("x-ratelimit-remaining-requests") == "0"
        assert response.get("x-ratelimit-reset-requests").endswith("s")
        for _ in range(5):
            other = await door.chat(bearer("b"))
            assert other.status == 200
            assert not other.all("x-ratelimit-limit-requests")
        assert (await door.get("/v1/models", bearer("a"))).status == 200


async def test_refusals_count_and_tell_the_limits_too(tmp_path: Path) -> None:
    async with locked_door(tmp_path, [key("a", requests_per_minute=3)], FakeUpstream()) as door:
        missing = await door.chat(bearer("a"), model="nobody")
        assert (missing.status, missing.get("x-ratelimit-remaining-requests")) == (404, "2")
        wrong = await door.get("/v1/chat/completions", bearer("a"))
        assert (wrong.status, wrong.get("x-ratelimit-remaining-requests"), wrong.get("allow")) == (405, "1", "POST")
        assert (await door.get("/v1/chat/completions")).status == 401


async def test_our_limits_stand_for_the_upstreams(tmp_path: Path) -> None:
    async def cloud(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, b"{}", "x-ratelimit-remaining-requests: 999", "x-other: 1"))

    async with locked_door(tmp_path, [key("a", requests_per_minute=3), key("b")], FakeUpstream(cloud)) as door:
        assert (await door.chat(bearer("a"))).all("x-ratelimit-remaining-requests") == ["2"]
        assert (await door.chat(bearer("b"))).all("x-ratelimit-remaining-requests") == ["999"]


def test_the_window_is_exact_and_a_refused_request_does_not_count() -> None:
    window = Window()
    assert [window.hit(2, at).wait for at in (0.0, 30.0)] == [0, 0]
    assert window.hit(2, 59.0).wait == pytest.approx(1)
    assert window.hit(2, 60.0).wait == 0
    assert window.hit(2, 89.0).wait == pytest.approx(1)
    assert window.hit(1, 89.0).wait == pytest.approx(31)
    assert window.hit(2, 200.0).remaining == 1


async def test_requests_at_once(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(http(200, b"{}"))

    upstream = FakeUpstream(slow)
    async with locked_door(tmp_path, [key("a", concurrent_requests=2)], upstream) as door:
        first = [await door.send("/v1/chat/completions", {"model": "m"}, bearer("a")) for _ in range(2)]
        await until(lambda: len(upstream.requests) == 2)
        response = await door.chat(bearer("a"))
        assert (response.status, response.get("retry-after")) == (429, "1")
        first[0][1].close()  # a client that leaves gives its place back
        client = next(iter(door.router.gate.keyring._clients.values()))  # type: ignore[union-attr]
        await until(lambda: client.running == 1)
        third = asyncio.create_task(door.chat(bearer("a")))
        await until(lambda: len(upstream.requests) == 3)
        assert (await door.chat(bearer("a"))).status == 429
        go_on.set()
        assert (await third).status == 200
        for body in (b"{", b'{"model":"none"}', b"[]"):
            assert (await door.ask("/v1/chat/completions", body, bearer("a"))).status in (400, 404)
        await until(lambda: client.running == 0)


async def test_a_changed_file_is_taken_over_and_a_wrong_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quintet_router.access.keyring._LOOK_SECONDS", 0.02)
    file = tmp_path / "keys.yml"
    async with locked_door(tmp_path, [key("a", requests_per_minute=2), key("b")], FakeUpstream()) as door:
        keyring = door.router.gate.keyring
        assert keyring is not None
        assert (await door.chat(bearer("a"))).status == 200
        keyfile.write(file, [key("a", requests_per_minute=2), key("c")])
        await until(lambda: {client.name for client in keyring._clients.values()} == {"a", "c"})
        assert (await door.chat(bearer("b"))).status == 401
        assert (await door.chat(bearer("c"))).status == 200
        assert (await door.chat(bearer("a"))).get("x-ratelimit-remaining-requests") == "0"  # it did not start anew
        for text in ("keys: [{name: x}]", "keys: [{created: 2026-13-45}]", "[" * 5000, None):
            if text is None:
                file.unlink()
            else:
                file.write_text(text)
            await until(lambda: not keyring.successful)
            assert (await door.chat(bearer("c"))).status == 200
            keyfile.write(file, [key("c"), key(f"k{len(text or '')}")])
            await until(lambda: keyring.successful)


async def test_a_file_of_keys_that_is_wrong_shows_in_the_metrics(tmp_path: Path) -> None:
    file = tmp_path / "keys.yml"
    async with locked_door(tmp_path, [key("a")], FakeUpstream()) as door:
        keyring = door.router.gate.keyring
        assert keyring is not None
        sources = Sources([door.router.fleet.upstreams[0].url], None, None)
        reloads = Reloads(sources, door.router.fleet, 1.0, keyring)
        door.router.metrics.more.append(reloads.metrics)
        assert await door.metric("quintet_config_last_reload_successful") == 1
        file.write_text("keys: [")
        await reloads.reload_all()
        assert reloads.successful
        assert await door.metric("quintet_config_last_reload_successful") == 0
        assert (await door.chat(bearer("a"))).status == 200
        keyfile.write(file, [key("b")])
        await reloads.reload_all()
        assert await door.metric("quintet_config_last_reload_successful") == 1
        at = await door.metric("quintet_config_last_reload_success_timestamp_seconds")
        assert at == keyring.succeeded_at or at == reloads.succeeded_at
        assert (await door.chat(bearer("a"))).status == 401


async def test_keys_that_are_just_being_written_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half that is there already would shut out whoever comes in the other one."""
    looks = iter(["half", "more", "all", "all"])
    read: list[str] = []
    file = tmp_path / "keys.yml"
    keyfile.write(file, [key("a")])
    monkeypatch.setattr(keyring_module, "_LOOK_SECONDS", 0.0)
    ring = Keyring(file)
    seen = [""]

    def look(_: Path) -> str:
        seen.append(next(looks, "all"))
        return seen[-1]

    monkeypatch.setattr(keyring_module, "stamp", look)
    monkeypatch.setattr(ring, "_read", lambda: read.append(seen[-1]) or [key("a")])  # type: ignore[func-returns-value]
    watching = asyncio.create_task(ring.watch())
    await until(lambda: len(seen) > 10)
    watching.cancel()
    assert (read, seen[:5]) == (["all"], ["", "half", "more", "all", "all"])


async def test_thousands_of_keys_are_read_while_the_router_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    async with locked_door(tmp_path, [key("a")], FakeUpstream()) as door:
        ring = door.router.gate.keyring
        assert ring is not None
        whole = ring._read

        def slow() -> list[Key]:
            go_on.wait(30)
            return whole()

        monkeypatch.setattr(ring, "_read", slow)
        keyfile.write(tmp_path / "keys.yml", [key("b")])
        first, second = (asyncio.create_task(ring.reload()) for _ in range(2))
        assert (await door.chat(bearer("a"))).status == 200
        go_on.set()
        await asyncio.gather(first, second)
        assert (await door.chat(bearer("a"))).status == 401


def test_many_keys_are_compared_in_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.yml"
    file.write_text("")
    many = [{"name": f"k{number}", "sha256": f"{number:064x}"} for number in range(20_000)]
    monkeypatch.setattr(yaml, "safe_load", lambda _: {"keys": many})
    started = time.process_time()
    assert len(keyfile.read(file)) == len(many)
    assert time.process_time() - started < 1


async def test_finding_a_key_takes_microseconds(tmp_path: Path) -> None:
    file = tmp_path / "keys.yml"
    keyfile.write(file, [key(f"k{number}") for number in range(500)])
    keyring, fields = Keyring(file), {b"authorization": b"Bearer sk-k250"}
    started = time.process_time()
    for _ in range(10_000):
        keyring.find(fields)
    assert (time.process_time() - started) / 10_000 < 20e-6


def test_patterns_and_names() -> None:
    client = Client(key("a", models=["org/*", "m?", "exact"]))
    assert all(map(client.may_use, ("org/x/y", "m1", "exact")))
    assert not any(map(client.may_use, ("org", "m", "m12", "exactly", "xorg/x", "")))
    assert client.may_use("other", ["exact"])


def test_the_file_holds_hashes_and_is_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "keys.yml"
    keyfile.write(file, [key("a", models=["m"], admin=True), key("b")])
    assert file.stat().st_mode & 0o777 == 0o600
    assert "sk-a" not in file.read_text()
    assert keyfile.read(file) == [key("a", models=["m"], admin=True), key("b")]
    assert os.listdir(tmp_path) == ["keys.yml"]
    assert len({keyfile.new_secret() for _ in range(100)}) == 100
    assert all(len(keyfile.new_secret()) == len(keyfile.PREFIX) + 43 for _ in range(10))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("keys: [{name: a, sha256: abc}]", "{file}:1: sha256: that is no SHA-256: 64 of the digits"),
        ("keys:\n- {name: a b, sha256: x}", "{file}:2: name: a name is of letters, digits and . _ @ -, begins with"),
        (
            f"keys:\n- {{name: a, sha256: {HASH},\n   requests_per_minute: 0}}",
            "{file}:3: requests_per_minute: expected a wh",
        ),
        ("keys:\n- name: a", "{file}:2: the key 'sha256' is missing."),
        ("models: []", "{file}:1: unknown key 'models'."),
        ("keys: 5", "{file}:1: keys: expected a list, got a whole number."),
        ("{keys: 5, keys: 5}", "{file}:1: the key 'keys' is on line 1 already."),
        ("", "{file}:1: expected keys with values, got nothing."),
        ("keys: [", "{file}:1: not valid YAML."),
        (f"{{keys: [{{name: a, sha256: {HASH}, x: 1}}]}}", "{file}:1: unknown key 'x'."),
        (f"{{keys: [{{name: a, sha256: {HASH}}}, {{name: a, sha256: b{HASH[1:]}}}]}}", "{file}: a is there twice."),
        (None, "{file}: cannot be read: No such file or directory."),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str | None, line: str) -> None:
    file = tmp_path / "keys.yml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(KeyFileError) as wrong:
        keyfile.read(file)
    assert str(wrong.value).startswith(line.format(file=file))
    assert "\n" not in str(wrong.value)


async def test_a_key_in_use_is_counted_by_its_name(tmp_path: Path) -> None:
    usage = b'{"x":"\\"usage\\":{\\"prompt_tokens\\":900}","usage":{"prompt_tokens":3,"completion_tokens":5}}'

    async def answer(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, usage))

    async with locked_door(tmp_path, [key("alice")], FakeUpstream(answer)) as door:
        for _ in range(2):
            await door.chat(bearer("alice"))
        await door.chat(bearer("mallory"))
        who = {"key": "alice", "model": "m"}
        assert await door.metric("quintet_usage_total", **who, unit="prompt_tokens") == 6
        assert await door.metric("quintet_usage_total", **who, unit="completion_tokens") == 10
        assert await door.metric("quintet_usage_total", **who, unit="requests") == 2
        assert b"mallory" not in (await door.get("/metrics")).body


def test_a_file_that_is_replaced_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    """A container reads it as a user of its own: `quintet keys` must not shut it out."""
    file = tmp_path / "keys.yml"
    keyfile.write(file, [key("a")])
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 10001, 10002)
    before = file.stat()
    keyfile.write(file, [key("a"), key("b")])
    after = file.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
