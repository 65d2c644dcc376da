"""What a JSON schema of a request may be, so that making a grammar of it takes seconds at most.

The limits are far beyond what people write; the costs behind them are measured in docs/chat.md.
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import msgspec
from quintet_common.errors import ApiError, bad_request

MAX_BYTES = 256 << 10
"""Of a schema as JSON."""

MAX_DEPTH = 100
"""Levels of objects and lists in a schema."""

MAX_PATTERN = 4000
"""Characters that a pattern stands for when its repetitions are written out."""

MAX_PROPERTIES = 2000
"""Of all objects of a schema together."""

MAX_OPTIONAL = 1000
"""Properties of one object that may be left out; the cost grows with their square."""


def check_schema(schema: Any, param: str) -> None:
    """Raise ApiError 400 that names ``param`` and the limit, when ``schema`` is beyond it."""
    level, depth, properties = [schema], 0, 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _refused(param, f"it is nested more than {MAX_DEPTH} levels deep")
        for node in level:
            if isinstance(node, dict):
                _check_patterns(node, param)
                properties += _count_properties(node, param)
        level = [child for node in level for child in _children(node)]
    if properties > MAX_PROPERTIES:
        raise _refused(param, f"it has {properties} properties, the limit is {MAX_PROPERTIES}")
    size = len(msgspec.json.encode(schema))
    if size > MAX_BYTES:
        raise _refused(param, f"it has {size} bytes, the limit is {MAX_BYTES}")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _count_properties(node: dict[str, Any], param: str) -> int:
    properties, required = node.get("properties"), node.get("required")
    if not isinstance(properties, dict):
        return 0
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    optional = len(properties.keys() - needed)
    if optional > MAX_OPTIONAL:
        raise _refused(param, f"{optional} properties of one object may be left out, the limit is {MAX_OPTIONAL}")
    return len(properties)


def _check_patterns(node: dict[str, Any], param: str) -> None:
    keys = node.get("patternProperties")
    for pattern in (node.get("pattern"), *(keys if isinstance(keys, dict) else ())):
        if isinstance(pattern, str) and _length(pattern) > MAX_PATTERN:
            raise _refused(param, f"the pattern {pattern[:40]!r} stands for more than {MAX_PATTERN} characters")


def _length(pattern: str) -> int:
    """The longest text of a pattern, where ``*`` and ``+`` count once; 0 for what only the compiler can judge."""
    try:
        return _expanded(parser.parse(pattern))
    except (re.error, RecursionError, OverflowError):
        return len(pattern)


def _expanded(items: Any) -> int:
    total = 0
    for code, argument in items:
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            low, high, inner = argument
            times = max(1, low) if high == codes.MAXREPEAT else high
            total += min(times * _expanded(inner), MAX_PATTERN + 1)
        elif code is codes.BRANCH:
            total += sum(_expanded(branch) for branch in argument[1])
        elif code in (codes.SUBPATTERN, codes.ATOMIC_GROUP):
            total += _expanded(argument[-1] if isinstance(argument, tuple) else argument)
        else:
            total += 1
    return total


def _refused(param: str, why: str) -> ApiError:
    return bad_request(f"{param}: no grammar is made of this schema: {why}.", param, "schema_too_complex")
