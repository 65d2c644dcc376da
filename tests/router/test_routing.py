"""Which upstream a request goes to, and what it looks like there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from quintet_common.models_yml import UpstreamSpec
from router.harness import FakeUpstream, card, http, open_door, raw, read_head, read_response, until


def form(*fields: tuple[str, bytes, str | None], boundary: str = "----odd'boundary_7") -> tuple[bytes, str]:
    """A multipart body and its content type; fields are (name, value, file name)."""
    body = b""
    for name, value, filename in fields:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + value + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f'content-type: multipart/form-data; boundary="{boundary}"'


async def test_a_request_goes_to_the_upstream_of_its_model_and_arrives_byte_for_byte() -> None:
    a, b = FakeUpstream(cards=[card("a")]), FakeUpstream(cards=[card("org/b")])
    async with open_door(a, b) as door:
        body = b'{ "messages" :[{"content":"\xc3\xa9 \\u00e9"}], "model":\t"org/b","x":1.0e0 }'
        response = await door.ask("/v1/chat/completions?x=%2F&y", body, "content-type: application/json")
    assert response.status == 200
    assert not a.requests
    assert b.requests[0].body == body
    assert b.requests[0].line == "POST /v1/chat/completions?x=%2F&y HTTP/1.1"


async def test_a_model_of_another_kind_is_refused_by_name() -> None:
    picture, foreign = FakeUpstream(cards=[card("p", kind="image")]), FakeUpstream(cards=[card("any", kind=None)])
    async with open_door(picture, foreign) as door:
        refused = await door.chat(model="p")
        assert (refused.status, refused.error["code"], refused.error["param"]) == (404, "model_not_found", "model")
        assert "kind 'image'" in refused.error["message"]
        assert (await door.chat(model="any")).status == 200
    assert not picture.requests


async def test_an_alias_goes_to_the_same_upstream_unchanged() -> None:
    a, b = FakeUpstream(cards=[card("a")]), FakeUpstream(cards=[card("b", aliases=["gpt-4o", "a"])])
    async with open_door(a, b) as door:
        await door.chat(model="gpt-4o")
        await door.chat(model="a")  # an id wins over another model's alias
    assert b.requests[0].json["model"] == "gpt-4o"
    assert a.requests[0].json["model"] == "a"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/chat/completions", "chat"),
        ("/responses", "chat"),
        ("/responses/input_tokens", "chat"),
        ("/completions", "chat"),
        ("/images/generations", "image"),
        ("/audio/speech", "tts"),
        ("/embeddings", "embedding"),
        ("/rerank", "rerank"),
    ],
)
async def test_without_a_model_the_default_of_the_paths_kind_answers(path: str, kind: str) -> None:
    kinds = ["multimodal", "chat", "image", "tts", "embedding", "rerank"]
    upstreams = {each: FakeUpstream(cards=[card(f"{each}-1", kind=each)]) for each in kinds}
    async with open_door(*upstreams.values()) as door:
        for prefix in ("", "/v1"):
            assert (await door.ask(prefix + path, {"input": "x"})).json["path"] == prefix + path
            assert (await door.ask(prefix + path, {"model": None})).status == 200
    assert len(upstreams[kind].requests) == 4


async def test_the_model_marked_default_is_the_default() -> None:
    a, b = FakeUpstream(cards=[card("a")]), FakeUpstream(cards=[card("b", default=True)])
    async with open_door(a, b) as door:
        await door.ask("/v1/chat/completions", {"messages": []})
    assert len(b.requests) == 1


async def test_a_form_with_the_model_first() -> None:
    a, b = FakeUpstream(cards=[card("a", kind="image")]), FakeUpstream(cards=[card("b", kind="image")])
    body, kind = form(("model", b"b", None), ("image", b"\x89PNG" + bytes(200_000), "a.png"))
    async with open_door(a, b) as door:
        response = await door.ask("/v1/images/edits", body, kind)
    assert response.json["bytes"] == len(body)
    assert b.requests[0].body == body
    assert b.requests[0].all("content-type") == [kind.split(": ", 1)[1]]
    assert b.requests[0].all("content-length") == [str(len(body))]


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_form_with_the_file_before_the_model_keeps_every_byte(framing: str) -> None:
    a, b = FakeUpstream(cards=[card("a", kind="image")]), FakeUpstream(cards=[card("b", kind="image")])
    picture = b'\r\n--\r\nname="model"\r\n\r\na\r\n' + bytes(range(256)) * 4000
    body, kind = form(("image", picture, "model"), ("model", b"b", None), ("prompt", b"x" * 300_000, None))
    async with open_door(a, b) as door:
        if framing == "length":
            response = await door.ask("/v1/images/edits", body, kind)
        else:
            pieces = [body[start : start + 70_000] for start in range(0, len(body), 70_000)]
            sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            response = await door.ask("/v1/images/edits", sent, kind, "transfer-encoding: chunked")
    assert response.json["bytes"] == len(body)
    assert b.requests[0].body == body


async def test_a_form_without_a_model_goes_to_the_default() -> None:
    a, b = FakeUpstream(cards=[card("a", kind="image")]), FakeUpstream(cards=[card("b", kind="image", default=True)])
    body, kind = form(("image", b"x" * 100_000, "a.png"))
    async with open_door(a, b) as door:
        assert (await door.ask("/v1/images/variations", body, kind)).status == 200
    assert b.requests[0].body == body


async def test_voices_and_pictures_are_found() -> None:
    async def only_b(request: Any, _: Any, writer: Any) -> None:
        writer.write(http(200, b"picture") if request.path.endswith("b.png") else http(404, b"{}"))

    async def nothing(_: Any, __: Any, writer: Any) -> None:
        writer.write(http(404, b"{}"))

    tts = FakeUpstream(cards=[card("t", kind="tts")])
    a, b = FakeUpstream(nothing, [card("a", kind="image")]), FakeUpstream(only_b, [card("b", kind="image")])
    async with open_door(tts, a, b) as door:
        assert (await door.get("/v1/audio/voices")).json["path"] == "/v1/audio/voices"
        assert (await door.get("/audio/voices?model=t")).json["path"] == "/audio/voices?model=t"
        for _ in range(8):
            assert (await door.get("/v1/images/files/b.png")).body == b"picture"
        reader, writer = await door.send("/v1/images/files/b.png", method="HEAD")
        line, headers = await read_head(reader)
        assert (line, dict(headers)["content-length"]) == ("HTTP/1.1 200 OK", "7")
        writer.write(raw("/v1/images/files/b.png", method="GET"))
        assert (await read_response(reader)).body == b"picture", "the next answer follows at once"
        writer.close()
        assert (await door.get("/v1/images/files/c.png")).status == 404
        for path in ("/v1/images/files/", "/v1/images/files/../x", "/v1/images/files/..", "/v1/images/filesx/a"):
            before = len(a.requests + b.requests)
            assert (await door.get(path)).status == 404
            assert len(a.requests + b.requests) == before


async def test_what_an_upstream_has_beside_the_api_stays_private() -> None:
    upstream = FakeUpstream()
    async with open_door(upstream) as door:
        for path in ("/sleep", "/v1/load_lora_adapter", "/v1/chat/completions/../../sleep", "/v1/v1/embeddings", "/"):
            response = await door.ask(path, {"model": "m"})
            assert response.status == 404
            assert response.error["type"] == "not_found_error"
    assert not upstream.requests


async def test_other_servers_get_their_key_their_path_and_their_own_id() -> None:
    other = FakeUpstream(cards=[{"id": "big", "x": 1}, {"id": "hidden"}])
    await other.start()
    spec = UpstreamSpec(url=other.url, key="sk-theirs", models=["big"], prefix="cloud/")
    async with open_door(spec) as door:
        body = json.dumps({"a": 1.0, "model": "cloud/big", "nested": {"model": "cloud/big"}, "t": "1e2"}).encode()
        assert (await door.ask("/chat/completions", body, "authorization: Bearer sk-ours")).status == 200
        listing = (await door.get("/v1/models")).json["data"]
        assert (await door.chat(model="big")).status == 404
        assert (await door.chat(model="cloud/hidden")).status == 404
    assert [entry["id"] for entry in listing] == ["cloud/big"]
    request = other.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.all("authorization") == ["Bearer sk-theirs"] == other.polls[0].all("authorization")
    assert request.json == {"a": 1.0, "model": "big", "nested": {"model": "cloud/big"}, "t": "1e2"}
    await other.stop()


async def test_a_url_that_ends_in_v1() -> None:
    other = FakeUpstream(cards=[{"id": "big"}])
    await other.start()
    async with open_door(UpstreamSpec(url=other.url + "/v1/")) as door:
        await door.ask("/chat/completions", {"model": "big"})
        await door.ask("/v1/chat/completions", {"model": "big"})
    assert [request.path for request in other.requests] == ["/v1/chat/completions"] * 2
    assert other.polls[0].path == "/v1/models"
    await other.stop()


async def test_an_id_is_rewritten_in_twenty_megabytes_without_touching_another_value() -> None:
    other = FakeUpstream(cards=[{"id": "big"}])
    await other.start()
    rest = (
        b'"n":1.10,"u":"\\u00e9","picture":"' + b"A" * (20 << 20) + b'","mod\\u0065l":"p/big","deep":{"model":"p/big"}}'
    )
    async with open_door(UpstreamSpec(url=other.url, prefix="p/")) as door:
        assert (
            await door.ask("/v1/chat/completions", b'{"model":"ignored, the last one counts",' + rest)
        ).status == 200
    assert other.requests[0].json == json.loads(b"{" + rest) | {"model": "big"}
    assert b'"n":1.10' in other.requests[0].body
    await other.stop()


async def test_a_form_for_a_prefixed_id_keeps_its_other_bytes() -> None:
    other = FakeUpstream(cards=[{"id": "big"}])
    await other.start()
    fields = ("image", b"x" * 400_000, "a.png"), ("model", b"p/big", None), ("prompt", b"p/big", None)
    body, kind = form(*fields)
    async with open_door(UpstreamSpec(url=other.url, prefix="p/")) as door:
        assert (await door.ask("/v1/images/edits", body, kind)).status == 200
    assert other.requests[0].body == form(fields[0], ("model", b"big", None), fields[2])[0]
    await other.stop()


async def test_replicas_share_the_work() -> None:
    a, b = FakeUpstream(), FakeUpstream()
    async with open_door(a, b) as door:
        assert [entry["id"] for entry in (await door.get("/v1/models")).json["data"]] == ["m"]
        for _ in range(40):
            assert (await door.chat()).status == 200
    assert min(len(a.requests), len(b.requests)) >= 5


async def test_a_replica_that_is_loading_is_spared() -> None:
    a, b = FakeUpstream(cards=[card("m", state="loading")]), FakeUpstream()
    async with open_door(a, b) as door:
        for _ in range(20):
            await door.chat()
        assert (await door.get("/v1/models/m")).json["state"] == "ready"
        assert not a.requests
        a.cards = [card("m")]
        await until(lambda: len(door.router.fleet.catalog.find("m").usable) == 2)  # type: ignore[union-attr]


async def test_models_are_listed_with_what_their_upstreams_say() -> None:
    a, b = FakeUpstream(cards=[card("a", aliases=["x"], extra=1)]), FakeUpstream(cards=[card("b/c")])
    async with open_door(a, b) as door:
        for path in ("/v1/models", "/models"):
            listing = (await door.get(path)).json
            assert [entry["id"] for entry in listing["data"]] == ["a", "b/c"]
            assert listing["data"][0] == card("a", aliases=["x"], extra=1)
        assert (await door.get("/v1/models/x")).json["id"] == "a"
        assert (await door.get("/models/b/c")).json["id"] == "b/c"
        missing = await door.get("/v1/models/nope")
    assert (missing.status, missing.error["code"], missing.error["param"]) == (404, "model_not_found", "model")


async def test_a_name_that_is_nearly_one_is_told_which() -> None:
    """ZLAI's page lists ``Kolors-diffusers``, its scripts ask for ``kolors_diffusers``."""
    upstream = FakeUpstream(cards=[card("Kolors-diffusers", kind="image"), card("qwen2-7b")])
    async with open_door(upstream) as door:
        response = await door.ask("/images/generations", {"model": "kolors_diffusers", "prompt": "x"})
        assert response.status == 404
        wanted = "The model 'kolors_diffusers' does not exist; did you mean 'Kolors-diffusers'?"
        assert response.error["message"] == wanted
        response = await door.ask("/chat/completions", {"model": "gpt-4o"})
        assert response.error["message"] == "The model 'gpt-4o' does not exist."
