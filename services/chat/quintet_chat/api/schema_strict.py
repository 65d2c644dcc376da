"""What a strict JSON schema may not say, because the compiler of grammars would drop it without a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quintet_common.errors import bad_request

from quintet_chat.api.schema_shape import schemas

_DROPPED = (
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "not",
    "then",
    "uniqueItems",
)
_ANNOTATIONS = frozenset(
    {
        "$comment",
        "$defs",
        "$id",
        "$ref",
        "$schema",
        "default",
        "definitions",
        "deprecated",
        "description",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
"""What constrains nothing and so may stand beside a ``$ref``."""


def check_strict(schema: dict[str, Any], param: str) -> None:
    """Raise ApiError 400 that names ``param`` and the keyword that an answer might not keep to."""
    for where, node in schemas(schema):
        for why in _faults(node):
            text = f"{param}: at {where[:200]!r} {why}, which cannot be guaranteed here; change it or leave strict out."
            raise bad_request(text, param, "unsupported_schema")


def _faults(node: dict[str, Any]) -> Iterator[str]:
    for keyword in _DROPPED:
        if node.get(keyword) not in (None, False):
            yield f"there is {keyword!r}"
    if isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1:
        yield "there is 'allOf' with more than one schema"
    yield from _faults_of_reference(node)
    if node.get("patternProperties") and node.get("properties"):
        yield "there is 'patternProperties' together with 'properties'"
    properties, required = node.get("properties", {}), node.get("required")
    if node.get("additionalProperties") is False and not node.get("patternProperties") and isinstance(required, list):
        for name in required:
            if isinstance(properties, dict) and isinstance(name, str) and name not in properties:
                yield f"'required' names {name[:80]!r}, which is not among the properties"


def _faults_of_reference(node: dict[str, Any]) -> Iterator[str]:
    reference = node.get("$ref")
    if reference is None:
        return
    if not isinstance(reference, str) or not reference.startswith("#"):
        yield "there is a '$ref' to somewhere else"
    if beside := sorted(node.keys() - _ANNOTATIONS):
        yield f"there is {beside[0][:80]!r} beside '$ref'"
