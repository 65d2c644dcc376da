"""What ``input`` may be: a text, texts, the token ids of one text, or of several."""

from __future__ import annotations

from typing import Annotated, Any, TypeGuard

from pydantic import WithJsonSchema
from quintet_common.errors import bad_request

MAX_ITEMS = 2048
"""Texts of one request: OpenAI's limit."""

MAX_CHARACTERS = 400_000
"""Characters of one text. Few models read as much; it bounds the time and memory that tokenising one text can take."""

_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_INPUT_SCHEMA = {
    "description": "A text, a list of texts, the token ids of one text, or a list of such lists.",
    "oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_ITEMS},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": MAX_ITEMS},
    ],
}
Input = Annotated[Any, WithJsonSchema(_INPUT_SCHEMA)]
"""``input`` as it came. A union type would report every arm that did not fit instead of the item that is wrong."""


def parse_input(value: Any) -> tuple[list[str], list[list[int]]]:
    """The texts, or else the lists of token ids; one of the two is empty. Raises ApiError 400 that names the item."""
    if isinstance(value, str):
        return [check_text(value, "input")], []
    if not isinstance(value, list):
        raise bad_request("input must be a text, a list of texts, or token ids.", "input", "invalid_type")
    if not value:
        raise bad_request("input is empty.", "input", "invalid_value")
    if isinstance(value[0], int) and not isinstance(value[0], bool):
        return [], [_check_tokens(value, "input")]
    check_count(len(value), "input")
    if isinstance(value[0], list):
        return [], [_check_tokens(item, f"input[{i}]") for i, item in enumerate(value)]
    return [check_text(item, f"input[{i}]") for i, item in enumerate(value)], []


def parse_texts(value: Any, param: str) -> list[str]:
    """A text or a list of texts as a list. Raises ApiError 400."""
    if isinstance(value, str):
        return [check_text(value, param)]
    if not isinstance(value, list) or not value:
        raise bad_request(f"{param} must be a text or a list of texts, and not empty.", param, "invalid_value")
    check_count(len(value), param)
    return [check_text(item, f"{param}[{i}]") for i, item in enumerate(value)]


def check_count(count: int, param: str) -> None:
    if count > MAX_ITEMS:
        message = f"{param} has {count} items; one request may have {MAX_ITEMS}."
        raise bad_request(message, param, "array_above_max_length")


def check_text(value: Any, param: str) -> str:
    """``value`` if it is a text that can be read. Raises ApiError 400."""
    if not isinstance(value, str):
        raise bad_request(f"{param} must be a string, not {_json_name(value)}.", param, "invalid_type")
    if not value:
        raise bad_request(f"{param} is empty.", param, "invalid_value")
    if len(value) > MAX_CHARACTERS:
        message = f"{param} has {len(value)} characters; a text may have {MAX_CHARACTERS}."
        raise bad_request(message, param, "string_above_max_length")
    return value


def _check_tokens(value: Any, param: str) -> list[int]:
    if not isinstance(value, list):
        raise bad_request(f"{param} must be a list of token ids, not {_json_name(value)}.", param, "invalid_type")
    if not value:
        raise bad_request(f"{param} is empty.", param, "invalid_value")
    if len(value) > MAX_CHARACTERS:
        raise bad_request(f"{param} has {len(value)} token ids.", param, "array_above_max_length")
    for i, token in enumerate(value):
        if not _is_token(token):
            message = f"{param}[{i}] must be a token id, an integer from 0, not {_json_name(token)}."
            raise bad_request(message, f"{param}[{i}]", "invalid_type")
    return value


def _is_token(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _json_name(value: Any) -> str:
    """How a client would call a value: by its JSON type, numbers by their value."""
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return str(value).lower()
    return "a string" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
