"""How the values of parameters are written in XML: strings as they are, everything else as JSON."""

from __future__ import annotations

import re
from enum import Enum, auto
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from quintet_chat.tools.base import MAX_SPACE, JsonSchema, one_of

NULL = "null"

_WORDS = frozenset({"enum", "const", "pattern", "format"})
"""What says which text a string is."""
_COMBINED = frozenset({"anyOf", "oneOf", "allOf", "not", "if", "$ref"})
_MAX_REFERENCES = 8


class Kind(Enum):
    TEXT = auto()
    TEXT_OR_NULL = auto()
    """A text, where ``null`` is no text."""
    JSON = auto()


def kind_of(schema: Any, root: JsonSchema) -> tuple[Kind, JsonSchema]:
    """How a value of ``schema`` is written, and the schema of it or, for TEXT_OR_NULL, of the text.

    Texts that might contain the mark at their end are written as JSON.
    """
    schema = _resolved(schema, root)
    if not isinstance(schema, dict):
        return Kind.JSON, {}
    if _is_text(schema):
        return Kind.TEXT, schema
    text = _without_null(schema, root)
    return (Kind.TEXT_OR_NULL, text) if text is not None and _is_text(text) else (Kind.JSON, schema)


def format_of(kind: Kind, schema: JsonSchema, root: JsonSchema, closing: str) -> dict[str, Any]:
    """The structural tag format of a value that ``closing`` follows."""
    if kind is Kind.JSON:
        definitions = {key: root[key] for key in ("$defs", "definitions") if key in root and _refers(schema)}
        return {"type": "json_schema", "json_schema": schema | definitions, "max_whitespace_cnt": MAX_SPACE}
    text = _text_format(schema, closing)
    return text if kind is Kind.TEXT else one_of([text, {"type": "const_string", "value": NULL}])


def _text_format(schema: JsonSchema, closing: str) -> dict[str, Any]:
    """Of a text without ``closing``. One of limited length has no ``<`` at all, since a grammar cannot count others."""
    if _WORDS & schema.keys():
        # The styles of XML differ around values only.
        return {"type": "json_schema", "json_schema": schema, "style": "qwen_xml"}
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    rest = {"type": "any_text", "excludes": [closing]}
    if most is not None:
        return {"type": "regex", "pattern": f"[^<]{{{least},{most}}}"}
    if not least:
        return rest
    # Neither of the two parts can begin what would be the mark together with the other.
    first = {"type": "regex", "pattern": f"([^<]|<[^<\\/]){{{least}}}"}
    return {"type": "sequence", "elements": [first, rest]}


def _is_text(schema: JsonSchema) -> bool:
    if _COMBINED & schema.keys():
        return False
    values = [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]
    if not all(isinstance(value, str) and "<" not in value and value != NULL for value in values):
        return False
    if "pattern" in schema and _may_contain(schema["pattern"], "<"):
        return False
    return schema.get("type") == "string" or (bool(values) and "type" not in schema)


def _without_null(schema: JsonSchema, root: JsonSchema) -> JsonSchema | None:
    """The schema of what is not null, if null is the one alternative."""
    if isinstance(schema.get("type"), list) and sorted(map(str, schema["type"])) == ["null", "string"]:
        rest = schema | {"type": "string"}
        return rest | {"enum": [value for value in rest["enum"] if value is not None]} if "enum" in rest else rest
    for word in ("anyOf", "oneOf"):
        choices = schema.get(word)
        if isinstance(choices, list) and len(choices) == 2 and not (_COMBINED - {word}) & schema.keys():
            others = [each for each in choices if not isinstance(each, dict) or each.get("type") != "null"]
            resolved = _resolved(others[0], root) if len(others) == 1 else None
            return resolved if isinstance(resolved, dict) else None
    return None


def _resolved(schema: Any, root: JsonSchema) -> Any:
    """What a reference into the same schema stands for; others stay."""
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith(("#/$defs/", "#/definitions/")):
            return schema
        _, place, name = reference.split("/", 2)
        target = root.get(place, {}).get(name)
        if target is None:
            return schema
        schema = target
    return schema


def _refers(node: Any) -> bool:
    if isinstance(node, list):
        return any(map(_refers, node))
    return isinstance(node, dict) and ("$ref" in node or any(map(_refers, node.values())))


def _may_contain(pattern: Any, character: str) -> bool:
    """Whether a text that a regular expression matches may have ``character`` in it; true where that is not known."""
    try:
        return _items_may(parser.parse(pattern), ord(character))
    except (re.error, RecursionError, OverflowError, TypeError):
        return True


def _items_may(items: Any, character: int) -> bool:
    return any(_item_may(code, argument, character) for code, argument in items)


def _item_may(code: Any, argument: Any, character: int) -> bool:
    if code is codes.LITERAL:
        return bool(argument == character)
    if code is codes.AT:
        return False
    if code is codes.IN and argument[0][0] is not codes.NEGATE:
        return _items_may(argument, character)
    if code is codes.RANGE:
        return bool(argument[0] <= character <= argument[1])
    if code is codes.CATEGORY:
        return argument not in (codes.CATEGORY_DIGIT, codes.CATEGORY_WORD, codes.CATEGORY_SPACE)
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        return _items_may(argument[2], character)
    if code is codes.BRANCH:
        return any(_items_may(branch, character) for branch in argument[1])
    return _items_may(argument[-1], character) if code is codes.SUBPATTERN else True
