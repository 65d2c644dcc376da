"""The form of a JSON schema: where its schemas are, and which keywords have values of the wrong type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quintet_common.errors import bad_request

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "additionalItems", "unevaluatedItems", "unevaluatedProperties")

_SCHEMA: tuple[type, ...] = (dict, bool)
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(_MAPS, ((dict,), "an object")),
    **dict.fromkeys(_LISTS, ((list,), "an array")),
    **dict.fromkeys(_SINGLE, (_SCHEMA, "a schema")),
    "items": ((*_SCHEMA, list), "a schema"),
    "enum": ((list,), "an array"),
    "required": ((list,), "an array"),
    "type": ((str, list), "a string or an array"),
    "pattern": ((str,), "a string"),
    "$ref": ((str,), "a string"),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), ((int, float), "a number")),
}


def check_shape(schema: Any, param: str) -> None:
    """Raise ApiError 400 that names ``param`` and a keyword whose value is of the wrong type."""
    for where, node in schemas(schema):
        for keyword in node.keys() & _TYPES.keys():
            types, expected = _TYPES[keyword]
            value = node[keyword]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                text = f"{param}: at {where[:200]!r} {keyword!r} is not {expected}."
                raise bad_request(text, param, "invalid_schema")


def schemas(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema that is an object, within ``schema`` and it, with its place."""
    waiting: list[tuple[str, Any]] = [("#", schema)]
    while waiting:
        where, node = waiting.pop()
        if isinstance(node, dict):
            yield where, node
            waiting += [(f"{where}/{path}", child) for path, child in _inner(node)]


def _inner(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword in _MAPS:
        if isinstance(node.get(keyword), dict):
            yield from ((f"{keyword}/{name}", child) for name, child in node[keyword].items())
    for keyword in _LISTS:
        if isinstance(node.get(keyword), list):
            yield from ((f"{keyword}/{index}", child) for index, child in enumerate(node[keyword]))
    for keyword in _SINGLE:
        yield keyword, node.get(keyword)
