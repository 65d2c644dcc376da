"""Grammars of plain text, and the same as EBNF for that text inside a JSON string."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

Ranges = tuple[tuple[int, int], ...]

MAX_COST = 16_000
"""Characters, classes and names of a grammar, repetitions written out."""

MAX_RULES = 200

_USUAL = 16
"""Ranges that a class has at most where nobody lists characters; ``\\S`` has 11."""

LAST = 0x10FFFF
_ESCAPES = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}
_NOT_BARE: Ranges = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0xD800, 0xDFFF))
"""Code points that are not written in a JSON string as they are; halves of surrogate pairs are no text."""


_SIGNS = {(0, None): "*", (1, None): "+", (0, 1): "?"}
"""Repetitions that have a sign, which xgrammar holds for less than the same written with numbers."""


class GrammarError(ValueError):
    """What is wrong with a grammar, as a sentence without its end."""


class Chars(NamedTuple):
    """One character of these code points; each range has its last one in it."""

    ranges: Ranges

    @property
    def cost(self) -> int:
        """What it is as long as when it is written, in characters and the usual classes."""
        return 1 + len(self.ranges) // _USUAL


class Row(NamedTuple):
    """All of these, one after the other."""

    parts: tuple[Node, ...]


class Choice(NamedTuple):
    """One of these."""

    parts: tuple[Node, ...]


class Repeat(NamedTuple):
    """``most`` None: any number of times."""

    part: Node
    least: int
    most: int | None


class Name(NamedTuple):
    """What the rule of this name says."""

    name: str


Node = Chars | Row | Choice | Repeat | Name


def text(written: str, *, any_case: bool = False) -> Node:
    """Exactly this text; of ASCII's letters either case where ``any_case``."""
    cases = [{each, each.swapcase()} if any_case and each.isascii() else {each} for each in written]
    parts = tuple(Chars(tuple((ord(one), ord(one)) for one in sorted(case))) for case in cases)
    return parts[0] if len(parts) == 1 else Row(parts)


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same code points, in order and without overlaps."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return tuple(result)


def without(ranges: Iterable[tuple[int, int]], taken: Iterable[tuple[int, int]]) -> Ranges:
    """The code points of ``ranges`` that are not in ``taken``."""
    result: list[tuple[int, int]] = []
    cuts, begin = merged(taken), 0
    for first, last in merged(ranges):
        while begin < len(cuts) and cuts[begin][1] < first:
            begin += 1
        for start, end in islice(cuts, begin, None):
            if start > last:
                break
            if first < start:
                result.append((first, start - 1))
            first = end + 1
        if first <= last:
            result.append((first, last))
    return tuple(result)


def check(rules: Mapping[str, Node]) -> None:
    """Raise GrammarError for a name without a rule, a rule without an end, and for more than ``MAX_COST``."""
    for name, node in rules.items():
        for used in _names(node):
            if used not in rules:
                raise GrammarError(f"{used!r}, which {name!r} names, is not defined")
    if len(rules) > MAX_RULES:
        raise GrammarError(f"it has more than {MAX_RULES} rules and terminals")
    if sum(map(cost, rules.values())) > MAX_COST:
        raise GrammarError(f"with its repetitions written out it has more than {MAX_COST} characters")
    ending: set[str] = set()
    while found := {name for name, node in rules.items() if name not in ending and _ends(node, ending)}:
        ending |= found
    if endless := sorted(rules.keys() - ending):
        raise GrammarError(f"{endless[0]!r} has no end")


def as_ebnf(rules: Mapping[str, Node], start: str) -> str:
    """xgrammar's EBNF of what a JSON string has between its quotes when its value is what ``start`` allows.

    Control characters that JSON has no letter for are written only where nothing else may be.
    """
    numbers = {name: f"r{index}" for index, name in enumerate(rules)}
    lines = [f"root ::= {numbers[start]}"]
    lines += [f"{numbers[name]} ::= {_written(node, numbers)}" for name, node in rules.items()]
    return "\n".join(lines)


def _names(node: Node) -> Iterable[str]:
    if isinstance(node, Name):
        yield node.name
    for part in _parts(node):
        yield from _names(part)


def _parts(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Repeat):
        return (node.part,)
    return node.parts if isinstance(node, Row | Choice) else ()


def cost(node: Node) -> int:
    """Characters, classes and names of ``node``, repetitions written out; more than ``MAX_COST`` are not counted."""
    if isinstance(node, Chars):
        return node.cost
    if isinstance(node, Repeat):
        return min(max(1, node.least, node.most or 0) * cost(node.part), MAX_COST + 1)
    return min(1 + sum(map(cost, _parts(node))), MAX_COST + 1)


def _ends(node: Node, ending: set[str]) -> bool:
    """Whether there is a text of ``node``, when there is one of each rule of ``ending``."""
    if isinstance(node, Chars):
        return bool(node.ranges)
    if isinstance(node, Name):
        return node.name in ending
    if isinstance(node, Repeat):
        return node.least == 0 or _ends(node.part, ending)
    return (any if isinstance(node, Choice) else all)(_ends(part, ending) for part in node.parts)


def _written(node: Node, numbers: Mapping[str, str]) -> str:
    if isinstance(node, Chars):
        return _chars(node.ranges)
    if isinstance(node, Name):
        return numbers[node.name]
    if isinstance(node, Repeat):
        times = f"{{{node.least},{'' if node.most is None else node.most}}}"
        return f"({_written(node.part, numbers)}){_SIGNS.get((node.least, node.most), times)}"
    if not node.parts:
        return '""'
    return f"({(' | ' if isinstance(node, Choice) else ' ').join(_written(part, numbers) for part in node.parts)})"


def _chars(ranges: Ranges) -> str:
    bare = without(ranges, _NOT_BARE)
    ways = [f"[{''.join(f'{_point(first)}-{_point(last)}' for first, last in bare)}]"] if bare else []
    odd = [
        code for first, last in ranges for code in range(first, min(last, 0x5C) + 1) if code < 0x20 or code in _ESCAPES
    ]
    if escaped := "".join(_point(ord(_ESCAPES[code])) for code in odd if code in _ESCAPES):
        ways.append(f'"\\\\" [{escaped}]')
    if not ways:
        ways = [f'"\\\\u{code:04x}"' for code in odd]
    if not ways:
        raise GrammarError("halves of surrogate pairs are no text")
    return f"({' | '.join(ways)})"


def _point(code: int) -> str:
    return f"\\U{code:08x}"
