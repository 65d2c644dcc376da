"""Limits for what a schema leaves open, for models that would not find an end by themselves."""

from __future__ import annotations

from typing import Any

MAX_LENGTH = 256
"""Characters of a string."""

MAX_ITEMS = 16

MAX_INTEGER = 10**15
"""Of either sign."""

_SETS = ("properties", "$defs", "definitions", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES = ("items", "additionalProperties")
_SAID_OTHERWISE = frozenset({"enum", "const", "pattern", "format", "maxLength", "$ref"})

_RANGES = frozenset(
    {"enum", "const", "$ref", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)


def bounded(schema: Any) -> Any:
    """``schema`` with limits on strings, integers and lists that have none; what matches it matches ``schema`` too."""
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for key in _SETS:
        if isinstance(result.get(key), dict):
            result[key] = {name: bounded(each) for name, each in result[key].items()}
    for key in _LISTS:
        if isinstance(result.get(key), list):
            result[key] = [bounded(each) for each in result[key]]
    for key in _ONES:
        if key in result:
            result[key] = bounded(result[key])
    if _may_be(schema, "string") and not _SAID_OTHERWISE & schema.keys():
        result["maxLength"] = max(MAX_LENGTH, schema.get("minLength", 0))
    if _may_be(schema, "integer") and not _RANGES & schema.keys():
        result |= {"minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}
    if _may_be(schema, "array") and "maxItems" not in schema:
        result["maxItems"] = max(MAX_ITEMS, schema.get("minItems", 0), len(schema.get("prefixItems", [])))
    return result


def _may_be(schema: dict[str, Any], kind: str) -> bool:
    return schema.get("type") == kind or (isinstance(schema.get("type"), list) and kind in schema["type"])
