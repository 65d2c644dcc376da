"""Calls whose arguments are parameters in XML, each with marks around its key and its value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from quintet_common.errors import bad_request

from quintet_chat.tools.base import ToolFunction, input_format, tag
from quintet_chat.tools.calls import ArgumentsReader, Calls
from quintet_chat.tools.xml_reader import Markup, XmlArguments
from quintet_chat.tools.xml_values import Kind, format_of, kind_of

_ANY_KEY = "[a-zA-Z_][a-zA-Z0-9_.-]*"
"""Of parameters that a schema allows without naming them."""

_IN_NO_KEY = frozenset('<>"\n')

_HELD = frozenset(
    {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
    | {"$schema", "$id", "$comment", "title", "description", "default", "examples"}
)
"""What the grammar holds of the schema of all parameters together, and what constrains nothing."""


@dataclass(frozen=True, kw_only=True)
class XmlCalls(Calls):
    """Parameters come in the order of their schema. Strings are written as they are, anything else as JSON."""

    markup: Markup
    before: ClassVar[str] = "<"

    def arguments(self, function: ToolFunction) -> dict[str, Any]:
        _check(function)
        root = function.parameters
        elements = []
        for key, schema in _properties(root).items():
            value = format_of(*kind_of(schema, root), root, self.markup.closing)
            if function.ebnf is not None:
                value = input_format(function.ebnf)
            each = tag(self.markup.begin(key), value, self.markup.end)
            elements.append(each if key in root.get("required", []) else {"type": "optional", "content": each})
        if not elements and root.get("additionalProperties", True) is not False:
            elements.append({"type": "star", "content": self._any_parameter(root)})
        return {"type": "sequence", "elements": elements or [_const("")]}

    def reader(self, function: ToolFunction | None) -> ArgumentsReader:
        root = function.parameters if function is not None else {}
        kinds = {key: kind_of(schema, root)[0] for key, schema in _properties(root).items()}
        if function is not None and function.ebnf is not None:
            kinds = dict.fromkeys(kinds, Kind.JSON)
        return XmlArguments(self.markup, kinds)

    def arguments_text(self, arguments: str) -> str:
        try:
            values = json.loads(arguments)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            values = {"ARGUMENTS": arguments}
        texts = {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in values.items()
        }
        return "".join(f"{self.markup.begin(key)}{text}{self.markup.end}" for key, text in texts.items())

    def _any_parameter(self, root: dict[str, Any]) -> dict[str, Any]:
        """A parameter of any name."""
        schema = root.get("additionalProperties", {})
        value = format_of(Kind.JSON, {} if schema is True else schema, root, self.markup.closing)
        opening, key_end = self.markup.begin("\0").split("\0")
        key = {"type": "regex", "pattern": _ANY_KEY}
        return {"type": "sequence", "elements": [_const(opening), key, tag(key_end, value, self.markup.end)]}


def _properties(root: dict[str, Any]) -> dict[str, Any]:
    properties = root.get("properties")
    return properties if isinstance(properties, dict) else {}


def _check(function: ToolFunction) -> None:
    """Raise ApiError 400 for what marks cannot write, and for what a strict function would not be held to."""
    for key in _properties(function.parameters):
        if not key or key != key.strip() or _IN_NO_KEY & set(key):
            message = f"tools: {function.name!r} has a parameter {key[:80]!r}, which this model cannot write."
            raise bad_request(message, "tools", "unsupported_schema")
    beyond = sorted(function.parameters.keys() - _HELD)
    if function.strict and beyond:
        message = f"tools: {function.name!r} says {beyond[0][:80]!r} of its parameters, which cannot be guaranteed here"
        raise bad_request(f"{message}; change it or leave strict out.", "tools", "unsupported_schema")


def _const(text: str) -> dict[str, Any]:
    return {"type": "const_string", "value": text}
