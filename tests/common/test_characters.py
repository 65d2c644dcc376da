"""Half characters: refused where a body is read, with the name of the field, however it is written."""

from __future__ import annotations

import json
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Body, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from quintet_common.characters import half_in
from quintet_common.dialect import include_both
from quintet_common.error_handlers import install_error_handlers

ANY = st.characters()  # surrogates, too
HALVES = st.characters(categories=["Cs"])
WHOLE = st.characters(exclude_categories=["Cs"])


def values(characters: Any) -> Any:
    texts = st.text(characters, max_size=8)
    leaves = st.none() | st.booleans() | st.integers() | texts
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=12)


@given(values(WHOLE))
def test_whole_characters_pass(value: Any) -> None:
    assert half_in(value) is None


@given(values(ANY))
def test_exactly_what_cannot_be_encoded_is_refused(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        error = half_in(value)
        assert error is not None
        json.dumps(error.body, ensure_ascii=False).encode()  # the refusal itself can be sent
    else:
        assert half_in(value) is None


@given(values(WHOLE), HALVES, st.lists(st.integers(0, 3) | st.sampled_from(["a", "b"]), min_size=1))
def test_the_field_is_named(beside: Any, half: str, path: list[int | str]) -> None:
    value: Any = f"x{half}"
    for part in reversed(path):
        value = {"before": beside, part: value} if isinstance(part, str) else [*([beside] * part), value]
    error = half_in(value)
    assert error is not None
    named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    assert (error.status, error.param, error.code) == (400, named, "invalid_value")


@pytest.fixture
async def client() -> Any:
    router = APIRouter()

    @router.post("/say")
    async def say(body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        return body

    app = FastAPI()
    install_error_handlers(app)
    include_both(app, router)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/say", "/say"])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (rb'{"a": [{"b": "x\ud800"}]}', "a[0].b"),
        (rb'{"a": {"\udc00": 1}}', "a"),
        (rb'{"\ud800": 1}', None),
        (rb'{"a": "\ud83d", "b": "\ude00"}', "b"),
        (b'{"a": "\xed\xa0\x80"}', "a"),
        ('{"a": "\\ud800"}'.encode("utf-16"), "a"),
    ],
)
async def test_a_body_with_half_a_character_is_a_400(client: Any, path: str, body: bytes, param: str | None) -> None:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert "half a character" in error["message"]


@pytest.mark.parametrize("body", [rb'{"a": "\ud83d\ude00 \\ud800"}', '{"a": "😀 é 中"}'.encode(), b'{"a": 1}'])
async def test_whole_bodies_arrive_as_they_are(client: Any, body: bytes) -> None:
    answer = await client.post("/v1/say", content=body, headers={"content-type": "application/json"})
    assert answer.json() == json.loads(body)
