"""Bodies that the router reads for their model."""

from __future__ import annotations

import json

import pytest
from quintet_common.errors import ApiError
from quintet_router.body import model_in_json


@pytest.mark.parametrize("is_talk", [False, True])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m", "x": "\ud800"}, "x"),
        ({"model": "m", "messages": [{"role": "user", "content": "\udfff"}]}, "messages[0].content"),
        ({"model": "\ud800"}, "model"),
        ({"model": "m", "\udc00": 1}, None),
    ],
)
def test_half_a_character_is_refused_as_the_services_do(body: dict[str, object], param: str, is_talk: bool) -> None:
    with pytest.raises(ApiError, match="half a character") as caught:
        model_in_json(json.dumps(body).encode(), is_talk)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, "invalid_value")


def test_half_a_character_that_is_no_escape_is_left_to_the_service() -> None:
    assert model_in_json(b'{"model": "m", "x": "\xed\xa0\x80"}')[0] == "m"
    with pytest.raises(ApiError, match="the value of 'x' is not"):
        model_in_json(b'{"model": "m", "x": "\\u12"}')
