"""``input`` in all its forms, and what is said of the wrong ones."""

from __future__ import annotations

from typing import Any

import pytest
from quintet_common.errors import ApiError
from quintet_embed.api.inputs import MAX_CHARACTERS, MAX_ITEMS, parse_input, parse_texts


@pytest.mark.parametrize(
    ("value", "texts", "tokens"),
    [
        ("a", ["a"], []),
        (["a", " "], ["a", " "], []),
        ([1, 2, 3], [], [[1, 2, 3]]),
        ([[1, 2], [0]], [], [[1, 2], [0]]),
        (["猫"] * MAX_ITEMS, ["猫"] * MAX_ITEMS, []),
        (list(range(3000)), [], [list(range(3000))]),
    ],
)
def test_forms(value: Any, texts: list[str], tokens: list[list[int]]) -> None:
    assert parse_input(value) == (texts, tokens)


@pytest.mark.parametrize(
    ("value", "param", "says"),
    [
        ("", "input", "input is empty"),
        ([], "input", "input is empty"),
        (["a", ""], "input[1]", "input[1] is empty"),
        (["a", 3], "input[1]", "must be a string, not 3"),
        (["a", None], "input[1]", "not null"),
        (["a", ["b"]], "input[1]", "not a list"),
        ([1, "a"], "input[1]", "must be a token id, an integer from 0, not a string"),
        ([1, True], "input[1]", "not true"),
        ([1, -1], "input[1]", "not -1"),
        ([1, 1.5], "input[1]", "not 1.5"),
        ([1, 1 << 40], "input[1]", "must be a token id"),
        ([[1], []], "input[1]", "input[1] is empty"),
        ([[1], "a"], "input[1]", "must be a list of token ids, not a string"),
        ([[1], [2, "a"]], "input[1][1]", "must be a token id"),
        ([True], "input[0]", "must be a string, not true"),
        ([{}], "input[0]", "not an object"),
        ({"text": "a"}, "input", "must be a text, a list of texts, or token ids"),
        (5, "input", "must be a text"),
        (["a"] * (MAX_ITEMS + 1), "input", "has 2049 items"),
        ([[1]] * (MAX_ITEMS + 1), "input", "has 2049 items"),
        ("a" * (MAX_CHARACTERS + 1), "input", "400001 characters"),
    ],
)
def test_mistakes_name_the_item(value: Any, param: str, says: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_input(value)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert says in caught.value.message


@pytest.mark.parametrize("value", ["", [], [1], 3, {}, None])
def test_texts_only(value: Any) -> None:
    with pytest.raises(ApiError):
        parse_texts(value, "input")
