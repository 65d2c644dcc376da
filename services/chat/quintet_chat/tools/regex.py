"""Regular expressions as grammars of what they match as a whole."""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from quintet_chat.tools.text_grammar import (
    LAST,
    Chars,
    Choice,
    GrammarError,
    Node,
    Ranges,
    Repeat,
    Row,
    merged,
    without,
)

_ALL: Ranges = ((0, LAST),)
_DIGITS: Ranges = ((0x30, 0x39),)
_WORDS: Ranges = (*_DIGITS, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES: Ranges = (
    *((0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)),
)
_ASCII: Ranges = ((0, 0x7F),)
_CATEGORIES = {
    codes.CATEGORY_DIGIT: _DIGITS,
    codes.CATEGORY_NOT_DIGIT: without(_ASCII, _DIGITS),
    codes.CATEGORY_WORD: _WORDS,
    codes.CATEGORY_NOT_WORD: without(_ASCII, _WORDS),
    codes.CATEGORY_SPACE: without(_SPACES, ((0x1C, 0x1F), (0x80, LAST))),
    codes.CATEGORY_NOT_SPACE: without(_ALL, _SPACES),
}
"""Of what Unicode adds nothing, so that what is written matches wherever the expression is read."""
_EDGES = {
    "first": (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING),
    "last": (codes.AT_END, codes.AT_END_STRING),
}
_REFUSED = {
    codes.ASSERT: "looking around cannot be held",
    codes.ASSERT_NOT: "looking around cannot be held",
    codes.GROUPREF: "a reference to a group cannot be held",
    codes.GROUPREF_EXISTS: "a reference to a group cannot be held",
    codes.ATOMIC_GROUP: "atomic groups cannot be held",
    codes.POSSESSIVE_REPEAT: "possessive repetitions cannot be held",
    codes.AT: "an anchor can be held at either end alone",
}


def node_of(pattern: str, flags: str = "") -> Node:
    """The grammar of ``pattern``, in Python's syntax; ``flags`` are letters behind it. Raises GrammarError.

    ``\\d``, ``\\w``, ``\\s``, ``\\D`` and ``\\W`` are those of ASCII.
    """
    try:
        flag = sum(int(re.RegexFlag[letter.upper()]) for letter in set(flags))
        parsed = parser.parse(pattern, flag)
    except (re.error, ValueError, KeyError, RecursionError, OverflowError) as error:
        raise GrammarError(f"{pattern[:80]!r} is no regular expression: {error}") from None
    items = list(parsed)
    while items and items[0][0] is codes.AT and items[0][1] in _EDGES["first"]:
        items.pop(0)
    while items and items[-1][0] is codes.AT and items[-1][1] in _EDGES["last"]:
        items.pop()
    return _row(items, parsed.state.flags)


def _row(items: Any, flags: int) -> Node:
    parts = tuple(_node(code, argument, flags) for code, argument in items)
    return parts[0] if len(parts) == 1 else Row(parts)


def _node(code: Any, argument: Any, flags: int) -> Node:
    if code is codes.SUBPATTERN:
        _, added, removed, inner = argument
        return _row(inner, (flags | added) & ~removed)
    if code is codes.BRANCH:
        return Choice(tuple(_row(branch, flags) for branch in argument[1]))
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        least, most, inner = argument
        return Repeat(_row(inner, flags), least, None if most == codes.MAXREPEAT else most)
    if code in _REFUSED:
        raise GrammarError(_REFUSED[code])
    if code is codes.ANY:
        return Chars(_ALL if flags & re.DOTALL else without(_ALL, ((0x0A, 0x0A),)))
    return Chars(_set(argument if code is codes.IN else [(code, argument)], flags))


def _set(items: Any, flags: int) -> Ranges:
    ranges: list[tuple[int, int]] = []
    is_negated = False
    for code, argument in items:
        if code is codes.NEGATE:
            is_negated = True
        elif code is codes.NOT_LITERAL:
            is_negated = True
            ranges.append((argument, argument))
        elif code is codes.LITERAL:
            ranges.append((argument, argument))
        elif code is codes.RANGE:
            ranges.append(argument)
        elif code is codes.CATEGORY:
            ranges += _CATEGORIES[argument]
        else:
            raise GrammarError("there is something in it that cannot be held")
    if flags & re.IGNORECASE:
        ranges += [_other_case(first, last) for first, last in ranges for first, last in _letters(first, last)]
    return without(_ALL, merged(ranges)) if is_negated else merged(ranges)


def _letters(first: int, last: int) -> list[tuple[int, int]]:
    """ASCII's letters among these."""
    both = [(max(first, start), min(last, end)) for start, end in ((0x41, 0x5A), (0x61, 0x7A))]
    return [(start, end) for start, end in both if start <= end]


def _other_case(first: int, last: int) -> tuple[int, int]:
    return first ^ 0x20, last ^ 0x20
