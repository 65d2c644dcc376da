"""Pages of other sites in browsers."""

from __future__ import annotations

from typing import Any

import pytest
from quintet_router.cors import Cors
from router.harness import Door, FakeUpstream, Response, http, open_door

PAGE = "https://chat.example.com"
ALLOWED = "access-control-allow-origin"


async def asks_first(door: Door, origin: str, path: str = "/v1/chat/completions") -> Response:
    """What a browser asks before it sends a page's request."""
    asked = ("access-control-request-method: POST", "access-control-request-headers: authorization,content-type")
    return await door.ask(path, None, f"origin: {origin}", *asked, method="OPTIONS")


@pytest.mark.parametrize(("allowed", "told"), [(PAGE, PAGE), ("*", "*")])
async def test_a_page_that_is_allowed_asks_and_reads(allowed: str, told: str) -> None:
    async with open_door(FakeUpstream(), cors=(allowed,)) as door:
        first = await asks_first(door, PAGE)
        assert (first.status, first.body) == (204, b"")
        assert first.get(ALLOWED) == told
        assert first.get("access-control-allow-methods") == "GET, POST"
        assert first.get("access-control-allow-headers") == "authorization,content-type"
        for answer in (
            await door.chat(f"origin: {PAGE}"),
            await door.chat(f"origin: {PAGE}", model="none"),
            await door.get("/v1/models", f"origin: {PAGE}"),
            await door.get("/v1/none", f"origin: {PAGE}"),
        ):
            assert answer.all(ALLOWED) == [told]
            assert "x-request-id" in answer.get("access-control-expose-headers")
            assert answer.get("vary") == "origin"


async def test_nobody_else_is_allowed_anything() -> None:
    async with open_door(FakeUpstream(), cors=(PAGE,)) as door:
        for origin in ("https://evil.example", PAGE + ".evil.example", "http://chat.example.com", "null"):
            assert (await asks_first(door, origin)).status == 405
            assert not (await door.chat(f"origin: {origin}")).all(ALLOWED)
        assert not (await door.chat()).all(ALLOWED)
    async with open_door(FakeUpstream()) as door:
        assert (await asks_first(door, PAGE)).status == 405
        assert not (await door.chat(f"origin: {PAGE}")).all(ALLOWED)


async def test_what_an_upstream_tells_browsers_is_replaced() -> None:
    async def open_to_all(_: Any, __: Any, writer: Any) -> None:
        writer.write(http(200, b"{}", "access-control-allow-origin: *", "access-control-allow-credentials: true"))

    async with open_door(FakeUpstream(open_to_all), cors=(PAGE,)) as door:
        answer = await door.chat(f"origin: {PAGE}")
        assert answer.all(ALLOWED) == [PAGE]
        assert not answer.all("access-control-allow-credentials")


async def test_names_of_headers_that_are_none_are_not_repeated() -> None:
    async with open_door(FakeUpstream(), cors=(PAGE,)) as door:
        asked = (f"origin: {PAGE}", "access-control-request-method: POST", "access-control-request-headers: a;b")
        answer = await door.ask("/v1/models", None, *asked, method="OPTIONS")
        assert answer.get("access-control-allow-headers") == "authorization, content-type"


@pytest.mark.parametrize(
    "origin", ["chat.example.com", "https://a/b", "https://a/", "https://A", "ftp://a", "https://*.a", ""]
)
def test_an_origin_has_a_scheme_and_a_host_alone(origin: str) -> None:
    with pytest.raises(ValueError, match=r"cors: .* is not an origin like https://"):
        Cors([origin])
