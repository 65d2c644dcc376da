"""Calls in XML: which values are written as they are and which as JSON, in the grammar and for the reader alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat.accepts import Accepts
from quintet_chat.tools import FAMILIES
from quintet_chat.tools.base import CallArguments, ToolFunction
from quintet_chat.tools.xml_values import Kind, kind_of
from quintet_common.errors import ApiError

XML = ["qwen3_coder", "seed_oss", "glm45", "glm47", "minimax_m2"]
every_family = pytest.mark.parametrize("name", XML)

TEXT = {"type": "string"}
NULLABLE = {"anyOf": [TEXT, {"type": "null"}]}


def function(properties: dict[str, Any], **fields: Any) -> ToolFunction:
    return ToolFunction("f", {"type": "object", "properties": properties, "required": list(properties), **fields})


def call(name: str, **values: str) -> str:
    """A call with values as they are written."""
    return FAMILIES[name].call_text("f", json.dumps(values))


def arguments(name: str, offered: ToolFunction, text: str, step: int = 3) -> str:
    parser = FAMILIES[name].parser([offered])
    pieces = [piece for start in range(0, len(text), step) for piece in parser.feed(text[start : start + step])]
    return "".join(piece.text for piece in [*pieces, *parser.close()] if isinstance(piece, CallArguments))


@pytest.fixture(scope="module")
def accepts() -> Accepts:
    return Accepts()


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (TEXT, Kind.TEXT),
        ({"type": "string", "maxLength": 3}, Kind.TEXT),
        ({"enum": ["a", "b"]}, Kind.TEXT),
        ({"const": "a"}, Kind.TEXT),
        ({"type": "string", "pattern": "^[a-z]\\d+(x|y)?$"}, Kind.TEXT),
        ({"$ref": "#/$defs/text"}, Kind.TEXT),
        (NULLABLE, Kind.TEXT_OR_NULL),
        ({"type": ["string", "null"]}, Kind.TEXT_OR_NULL),
        ({"type": ["string", "null"], "enum": ["a", None]}, Kind.TEXT_OR_NULL),
        ({"oneOf": [{"type": "null"}, {"$ref": "#/$defs/text"}]}, Kind.TEXT_OR_NULL),
        ({"type": "string", "pattern": ".*"}, Kind.JSON),
        ({"type": "string", "pattern": "[^a]"}, Kind.JSON),
        ({"type": "string", "pattern": "("}, Kind.JSON),
        ({"type": "string", "pattern": "(?=a)b"}, Kind.JSON),
        ({"enum": ["a", "<b"]}, Kind.JSON),
        ({"enum": ["a", 1]}, Kind.JSON),
        ({"enum": ["a", "null"]}, Kind.JSON),
        ({"type": "string", "not": {"const": "a"}}, Kind.JSON),
        ({"anyOf": [TEXT, {"type": "integer"}]}, Kind.JSON),
        ({"anyOf": [TEXT, {"type": "null"}], "not": {"const": "a"}}, Kind.JSON),
        ({"$ref": "#/$defs/none"}, Kind.JSON),
        ({"$ref": "#/$defs/round"}, Kind.JSON),
        ({"type": "integer"}, Kind.JSON),
        ({"type": "object"}, Kind.JSON),
        ({}, Kind.JSON),
        (True, Kind.JSON),
    ],
)
def test_what_is_written_as_text(schema: Any, kind: Kind) -> None:
    root = {"$defs": {"text": TEXT, "round": {"$ref": "#/$defs/round"}}}
    assert kind_of(schema, root)[0] is kind


VALUES = [
    # schema, a value as it is written, the same as JSON; the value is None where the grammar must not allow it
    (TEXT, "Paris", '"Paris"'),
    (TEXT, "", '""'),
    (TEXT, "\na\n", '"\\na\\n"'),
    (TEXT, 'say "<b>hi</b>" \\ </', '"say \\"<b>hi</b>\\" \\\\ </"'),
    (TEXT, "null", '"null"'),
    (TEXT, "{1}", '"{1}"'),
    (NULLABLE, "null", "null"),
    (NULLABLE, "nullify", '"nullify"'),
    (NULLABLE, "nul", '"nul"'),
    (NULLABLE, "", '""'),
    ({"type": "string", "maxLength": 2}, "猫a", '"猫a"'),
    ({"type": "string", "maxLength": 2}, "abc", None),
    ({"type": "string", "minLength": 2}, "a<b", '"a<b"'),
    ({"type": "string", "minLength": 2}, "a", None),
    ({"type": "string", "pattern": "^a+$"}, "aa", '"aa"'),
    ({"type": "string", "pattern": "^a+$"}, "b", None),
    ({"type": "string", "format": "date"}, "2026-01-31", '"2026-01-31"'),
    ({"type": "string", "format": "date"}, "today", None),
    ({"enum": ["a", "b c"]}, "b c", '"b c"'),
    ({"enum": ["a", "b c"]}, "c", None),
    ({"type": "integer"}, "-12", "-12"),
    ({"type": "integer"}, "x", None),
    ({"type": "boolean"}, "true", "true"),
    ({"type": "array", "items": TEXT}, '["a", "</parameter></arg_value>"]', '["a", "</parameter></arg_value>"]'),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}}, '{"a": 1}', '{"a": 1}'),
    ({"anyOf": [TEXT, {"type": "integer"}]}, '"a"', '"a"'),
    ({"anyOf": [TEXT, {"type": "integer"}]}, "a", None),
]


@every_family
@pytest.mark.parametrize(("schema", "written", "expected"), VALUES)
def test_a_value(accepts: Accepts, name: str, schema: Any, written: str, expected: str | None) -> None:
    offered = function({"x": schema, "n": {"type": "integer"}}, **{"$defs": {"n": {"type": "integer"}}})
    text = call(name, x=written, n="1")
    assert accepts(FAMILIES[name].calls([offered], several=True), text) is (expected is not None)
    if expected is not None:
        for step in (1, 4, 1000):
            assert arguments(name, offered, text, step) == f'{{"x": {expected}, "n": 1}}'


@every_family
def test_no_text_contains_the_mark_that_ends_it(accepts: Accepts, name: str) -> None:
    closing = FAMILIES[name].markup.closing  # type: ignore[attr-defined]
    for schema in (TEXT, TEXT | {"minLength": 1}, TEXT | {"minLength": 1, "maxLength": 99}, NULLABLE):
        offered = function({"x": schema})
        for written in (f"a{closing}b", f"{closing}b", f"<{closing}"):
            assert not accepts(FAMILIES[name].calls([offered], several=True), call(name, x=written))


@every_family
def test_optional_parameters_may_be_left_out_and_others_may_not(accepts: Accepts, name: str) -> None:
    offered = function({"a": TEXT, "b": TEXT}, required=["b"])
    form = FAMILIES[name].calls([offered], several=True)
    assert accepts(form, call(name, a="1", b="2"))
    assert accepts(form, call(name, b="2"))
    assert not accepts(form, call(name, a="1"))
    assert not accepts(form, call(name, b="2", c="3"))


@every_family
@pytest.mark.parametrize("parameters", [{"type": "object"}, {"type": "object", "additionalProperties": True}])
def test_parameters_of_any_name_are_json(accepts: Accepts, name: str, parameters: dict[str, Any]) -> None:
    offered = ToolFunction("f", parameters)
    form = FAMILIES[name].calls([offered], several=True)
    text = call(name, a="[1]", b='"x"')
    assert accepts(form, text)
    assert not accepts(form, call(name, a="x"))
    assert arguments(name, offered, text) == '{"a": [1], "b": "x"}'


@every_family
def test_a_function_without_parameters(accepts: Accepts, name: str) -> None:
    offered = function({}, additionalProperties=False)
    form = FAMILIES[name].calls([offered], several=True)
    assert accepts(form, call(name))
    assert not accepts(form, call(name, a="1"))
    assert arguments(name, offered, call(name)) == "{}"


@every_family
def test_whitespace_around_json_is_dropped(name: str) -> None:
    offered = function({"x": {"type": "array"}, "y": {"type": "integer"}})
    for step in (1, 5, 1000):
        assert arguments(name, offered, call(name, x="\n [1,\n 2] \n", y=" 3\n"), step) == '{"x": [1,\n 2], "y": 3}'


@every_family
def test_what_marks_cannot_write_is_refused(name: str) -> None:
    with pytest.raises(ApiError, match="parameter 'a>b'"):
        FAMILIES[name].calls([function({"a>b": TEXT})], several=True)
    loose = function({"a": TEXT}, minProperties=1)
    FAMILIES[name].calls([loose], several=True)
    strict = ToolFunction(loose.name, loose.parameters, strict=True)
    with pytest.raises(ApiError, match="'minProperties'"):
        FAMILIES[name].calls([strict], several=True)


def test_a_parameter_without_its_line_breaks_is_read_all_the_same() -> None:
    text = "<tool_call><function=f><parameter=x>a</parameter><parameter=n>1</parameter></function></tool_call>"
    offered = function({"x": TEXT, "n": {"type": "integer"}})
    for step in (1, 1000):
        assert arguments("qwen3_coder", offered, text, step) == '{"x": "a", "n": 1}'


@pytest.mark.parametrize("step", [1, 6, 1000])
def test_a_forgotten_mark_makes_no_text_of_a_call(accepts: Accepts, step: int) -> None:
    family, offered = FAMILIES["qwen3_coder"], function({"x": TEXT})
    text = call("qwen3_coder", x="a").removeprefix("<tool_call>\n")
    assert accepts(family.text_or_calls([offered], several=True), f"Well.\n{text}")
    assert not accepts(family.text_or_calls([offered], several=True), text.replace("=x>", "=y>"))
    assert not accepts(family.calls([offered], several=True), text)
    assert arguments("qwen3_coder", offered, text, step) == '{"x": "a"}'
