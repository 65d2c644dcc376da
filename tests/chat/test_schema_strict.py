"""Under ``strict`` nothing of a schema is dropped silently: it is refused by name, or holds."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from chat.test_api_chat import USER
from openai import OpenAI
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel
from quintet_chat.api.schema_strict import check_strict
from quintet_common.errors import ApiError

UNIQUE: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"allOf": [{"type": "object"}, {"required": ["a"]}]}, "'allOf' with more"),
        ({"$ref": "https://example.com/schema"}, "somewhere else"),
        ({"$ref": "#/$defs/a", "minLength": 3, "$defs": {"a": {"type": "string"}}}, "'minLength' beside"),
        (UNIQUE, "'uniqueItems'"),
        ({"type": "array", "contains": {"const": 1}}, "'contains'"),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, "'if'"),
        ({"not": {"type": "string"}}, "'not'"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"type": "object", "dependentSchemas": {"a": {}}}, "'dependentSchemas'"),
        ({"patternProperties": {"^x": {}}, "properties": {"a": {}}}, "'patternProperties' together"),
        ({"properties": {}, "required": ["a"], "additionalProperties": False}, "names 'a'"),
        (
            {"properties": {"a": {"anyOf": [{"type": "null"}, UNIQUE]}}},
            "#/properties/a/anyOf/1' there is 'uniqueItems'",
        ),
        ({"$defs": {"a": {"items": {"not": {}}}}}, "#/\\$defs/a/items' there is 'not'"),
    ],
)
def test_what_the_compiler_drops_is_refused_by_name(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        check_strict(schema, "x")
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "x", "unsupported_schema")


class Inner(BaseModel):
    size: int | None


class Outer(BaseModel):
    """A model as people send it."""

    inner: Inner
    others: list[Inner]


@pytest.mark.parametrize(
    "schema",
    [
        to_strict_json_schema(Outer),
        {"properties": {"not": {"type": "string"}, "if": {"enum": [{"uniqueItems": True}]}}},
        {"$ref": "#/$defs/a", "description": "x", "$defs": {"a": {"allOf": [{"type": "string"}]}}},
        {"type": "array", "uniqueItems": False},
    ],
    ids=["the SDK's", "properties and values of such names", "annotations", "false"],
)
def test_what_holds_is_accepted(schema: dict[str, Any]) -> None:
    check_strict(schema, "x")


def test_only_strict_requests_are_refused(client: OpenAI) -> None:
    def ask(**fields: Any) -> Any:
        return client.chat.completions.create(model="short", messages=USER, **fields)  # type: ignore[arg-type]

    def as_format(strict: bool | None) -> Any:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": UNIQUE, "strict": strict}}

    def as_tools(strict: bool | None) -> Any:
        parameters = {"type": "object", "properties": {"a": UNIQUE}}
        return [{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}]

    for strict in (None, False):
        ask(response_format=as_format(strict))
        ask(tools=as_tools(strict))
    with pytest.raises(openai.BadRequestError) as caught:
        ask(response_format=as_format(True))
    assert (caught.value.param, caught.value.code) == ("response_format.json_schema.schema", "unsupported_schema")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(tools=as_tools(True))
    assert (caught.value.param, caught.value.code) == ("tools[0].function.parameters", "unsupported_schema")
