"""What the JSON schemas of a request may be, so that making a grammar of them takes seconds at most.

The limits are for one schema and for those of all tools together. They are far beyond what people write; the costs
behind them are measured in docs/chat.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import msgspec
from quintet_common.errors import ApiError, bad_request

from quintet_chat.api.schema_shape import check_shape

MAX_BYTES = 256 << 10
"""Of a schema as JSON."""

MAX_DEPTH = 100
"""Levels of objects and lists in a schema."""

MAX_PATTERN = 4000
"""Characters that a pattern stands for when its repetitions are written out."""

MAX_PATTERNS = 4 * MAX_PATTERN
"""The same of all patterns together."""

LONG, MAX_LONG = 128, 16
"""How many different limits of a string's length there may be beyond ``LONG``; each is a state machine of its own."""

MAX_PROPERTIES = 2000
"""Of all objects of a schema together."""

MAX_OPTIONAL = 1000
"""Properties of one object that may be left out; the cost grows with their square."""


class Cost(NamedTuple):
    """What making a grammar depends on."""

    bytes: int = 0
    """Of the schema as JSON."""
    properties: int = 0
    patterns: int = 0
    """Characters that they stand for."""
    lengths: frozenset[int] = frozenset()
    """The limits of strings' lengths beyond ``LONG``."""


def check_schema(schema: Any, param: str) -> Cost:
    """What ``schema`` costs; raises ApiError 400 that names ``param`` and the limit, when it is beyond one."""
    level, depth = [schema], 0
    properties, patterns, lengths = 0, 0, set[int]()
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _refused(param, f"it is nested more than {MAX_DEPTH} levels deep")
        for node in level:
            if isinstance(node, dict):
                patterns += _count_patterns(node, param)
                properties += _count_properties(node, param)
                lengths.update(_long_lengths(node))
        level = [child for node in level for child in _children(node)]
    check_shape(schema, param)
    cost = Cost(len(msgspec.json.encode(schema)), properties, patterns, frozenset(lengths))
    _check_cost(cost, param)
    return cost


def check_together(costs: Iterable[Cost], param: str) -> None:
    """Raise ApiError 400 when schemas that each are within the limits are beyond them together."""
    total = Cost()
    for cost in costs:
        total = Cost(
            total.bytes + cost.bytes,
            total.properties + cost.properties,
            total.patterns + cost.patterns,
            total.lengths | cost.lengths,
        )
    _check_cost(total, param)


def _check_cost(cost: Cost, param: str) -> None:
    measured = {
        "bytes": (cost.bytes, MAX_BYTES),
        "properties": (cost.properties, MAX_PROPERTIES),
        "characters of patterns": (cost.patterns, MAX_PATTERNS),
        f"different limits of lengths beyond {LONG}": (len(cost.lengths), MAX_LONG),
    }
    for what, (found, limit) in measured.items():
        if found > limit:
            raise _refused(param, f"it has {found} {what}, the limit is {limit}")


def _long_lengths(node: dict[str, Any]) -> set[int]:
    return {value for word in ("minLength", "maxLength") if isinstance(value := node.get(word), int) and value > LONG}


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


def _count_patterns(node: dict[str, Any], param: str) -> int:
    keys, total = node.get("patternProperties"), 0
    for pattern in (node.get("pattern"), *(keys if isinstance(keys, dict) else ())):
        length = _length(pattern) if isinstance(pattern, str) else 0
        if length > MAX_PATTERN:
            raise _refused(param, f"the pattern {pattern[:40]!r} stands for more than {MAX_PATTERN} characters")
        total += length
    return total


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
    return bad_request(f"{param}: no grammar is made of this: {why}.", param, "schema_too_complex")
