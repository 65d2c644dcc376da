"""Random JSON schemas of the kind that people write, for tests that a model's answers keep to them."""

from __future__ import annotations

import random
import string
from typing import Any

import jsonschema

WORDS = ["name", "city", "age", "unit", "a b", "größe", "名", "x-1", "type"]
PATTERNS = ["^[a-z]{1,4}$", "^\\d{2}-\\d{2}$", "^(red|green|blue)$", "^[A-Z][a-z]*$"]


def random_schema(draw: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema that small answers can match; ``depth`` bounds how far objects and lists nest."""
    makers = [_string, _integer, _number, _enum, _constant, _simple]
    if depth:
        makers += [_object, _object, _array, _choice]
    return draw.choice(makers)(draw, depth)


def random_object(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema of an object, as arguments of functions have them."""
    return _object(draw, depth + 1)


def problem_of(value: Any, schema: dict[str, Any]) -> str | None:
    """Why ``value`` does not match ``schema``, or None."""
    error = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(value)), None)
    return None if error is None else f"{error.message} at {list(error.absolute_path)}"


def _string(draw: random.Random, _depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if draw.random() < 0.3:
        return schema | {"pattern": draw.choice(PATTERNS)}
    if draw.random() < 0.2:
        return schema | {"format": draw.choice(["date", "time", "uuid", "ipv4"])}
    if draw.random() < 0.7:
        schema["maxLength"] = draw.randint(1, 8)
    if draw.random() < 0.3:
        schema["minLength"] = draw.randint(0, schema.get("maxLength", 3))
    return schema


def _integer(draw: random.Random, _depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    low = draw.randint(-2000, 2000)
    if draw.random() < 0.7:
        schema[draw.choice(["minimum", "exclusiveMinimum"])] = low
    if draw.random() < 0.7:
        schema[draw.choice(["maximum", "exclusiveMaximum"])] = low + draw.randint(2, 5000)
    return schema


def _number(draw: random.Random, _depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number"}
    if draw.random() < 0.5:
        schema |= {"minimum": draw.randint(-50, 0), "maximum": draw.randint(1, 50)}
    return schema


def _enum(draw: random.Random, _depth: int) -> dict[str, Any]:
    values = [*draw.sample(WORDS, 3), 5, -1.5, None, True]
    return {"enum": draw.sample(values, draw.randint(1, 4))}


def _constant(draw: random.Random, _depth: int) -> dict[str, Any]:
    text = "".join(draw.choices(string.printable, k=6))
    return {"const": draw.choice([text, 7, None, False, {"a": [1, "x"]}])}


def _simple(draw: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": draw.choice(["boolean", "null", ["string", "null"], ["integer", "boolean"]])}


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(WORDS, draw.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(draw, depth - 1) for name in names},
        "additionalProperties": False,
    }
    schema["required"] = names if draw.random() < 0.6 else draw.sample(names, draw.randint(0, len(names)))
    if draw.random() < 0.15:
        schema["additionalProperties"] = {"type": "integer"}
    return schema


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": random_schema(draw, depth - 1)}
    if draw.random() < 0.2:
        schema["prefixItems"] = [random_schema(draw, 0) for _ in range(draw.randint(1, 2))]
        schema |= {"minItems": len(schema["prefixItems"])}
    schema["maxItems"] = draw.randint(schema.get("minItems", 0) + 1, 5)
    return schema


def _choice(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(draw, depth - 1) for _ in range(draw.randint(2, 3))]}
