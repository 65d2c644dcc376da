"""Grammars that read a text in many ways at once, which makes every step of an answer slow: mended, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from quintet_chat.tools.text_grammar import MAX_COST, Chars, Choice, GrammarError, Name, Node, Repeat, Row, cost

Rules = Mapping[str, Node]

MAX_OPEN = 40
"""Parts side by side that may be empty or are endless. Steps take the square of their number, and a few milliseconds
with so many."""

_SMALL = 12
"""Parts of a rule that is written out where it is named."""


def with_few(rules: Rules) -> dict[str, Node]:
    """The same grammar, where repetitions of repetitions are one. Raises GrammarError for what cannot be mended."""
    mender = _Mender(rules)
    result = {name: mender.mended(node) for name, node in rules.items()}
    sight = _Sight(result)
    for name, node in result.items():
        for part in _all(node):
            if isinstance(part, Repeat) and part.most is None and sight.alone(part.part):
                raise GrammarError(f"{name!r} repeats what may be empty, or a repetition with nothing fixed beside it")
            if isinstance(part, Row) and sight.open(part) > MAX_OPEN:
                raise GrammarError(
                    f"{name!r} has more than {MAX_OPEN} parts side by side that may be empty or are endless"
                )
            if isinstance(part, Row) and sight.times(part, name) > 1:
                raise GrammarError(f"{name!r} may be itself twice with nothing fixed between; say it as a repetition")
    return result


def inlined(rules: Rules) -> dict[str, Node]:
    """The same grammar with small rules written out where they are named, which xgrammar holds for less; as it is where
    that would make too much of it."""
    small = {name: node for name, node in rules.items() if _size(node) <= _SMALL and not _names(node)}
    result = {name: _written_out(node, small) for name, node in rules.items()}
    return result if sum(map(_size, result.values())) <= MAX_COST else dict(rules)


def _size(node: Node) -> int:
    return sum(part.cost if isinstance(part, Chars) else 1 for part in _all(node))


def _names(node: Node) -> bool:
    return any(isinstance(part, Name) for part in _all(node))


def _written_out(node: Node, small: Rules) -> Node:
    if isinstance(node, Name):
        return small.get(node.name, node)
    if isinstance(node, Repeat):
        return node._replace(part=_written_out(node.part, small))
    if isinstance(node, Row | Choice):
        return type(node)(tuple(_written_out(part, small) for part in node.parts))
    return node


class _Sight:
    """What a grammar's parts may be. It is asked of parts of ``rules`` alone, which it keeps: it knows them by id."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        # Asked of the same parts at every level above them: nested deep enough that would take minutes.
        self._known_empty: dict[int, bool] = {}
        self._known_alone: dict[int, bool] = {}
        self._empty = _growing(rules, _empty)
        self._alone = _growing(rules, self._is_alone)
        self._units = {name: set(self._unit(node)) for name, node in rules.items()}
        self._widths: dict[str, int] = {}

    def empty(self, node: Node) -> bool:
        if (known := self._known_empty.get(id(node))) is None:
            known = self._known_empty[id(node)] = _empty(node, self._empty)
        return known

    def alone(self, node: Node) -> bool:
        """Whether ``node`` may be empty, or a repetition and nothing that is fixed besides."""
        if (known := self._known_alone.get(id(node))) is None:
            known = self._known_alone[id(node)] = self._is_alone(node, self._alone)
        return known

    def open(self, row: Row) -> int:
        """How many parts of ``row``, and of what they are made of, may be empty or endless side by side."""
        most = here = 0
        for part in row.parts:
            here = here + self._width(part) if self.alone(part) else 0
            most = max(most, here)
        return most

    def times(self, row: Row, name: str) -> int:
        """How often the rule ``name`` may stand in ``row`` with nothing beside it."""
        may_be = [any(self._reaches(unit, name) for unit in self._unit(part)) for part in row.parts]
        others = zip(row.parts, may_be, strict=True)
        return 0 if any(not may and not self.empty(part) for part, may in others) else sum(may_be)

    def _width(self, node: Node) -> int:
        """The same of a node that may be so as a whole; more than ``MAX_OPEN`` are not counted."""
        if isinstance(node, Name):
            if node.name not in self._widths:
                self._widths[node.name] = 1  # where it names itself
                self._widths[node.name] = self._width(self._rules[node.name])
            return self._widths[node.name]
        parts = (node.part,) if isinstance(node, Repeat) else node.parts if isinstance(node, Row | Choice) else ()
        return min(max(1, sum(self._width(part) for part in parts if self.alone(part))), MAX_OPEN + 1)

    def _is_alone(self, node: Node, found: set[str]) -> bool:
        if isinstance(node, Name):
            return node.name in found or node.name in self._empty
        if isinstance(node, Choice):
            return any(self._is_alone(part, found) for part in node.parts)
        if isinstance(node, Row):
            fixed = [part for part in node.parts if not self.empty(part)]
            return not fixed or (len(fixed) == 1 and self._is_alone(fixed[0], found))
        return isinstance(node, Repeat) and (node.most is None or node.least == 0 or self._is_alone(node.part, found))

    def _unit(self, node: Node) -> Iterator[str]:
        """The rules that ``node`` may be with nothing beside them."""
        if isinstance(node, Name):
            yield node.name
        elif isinstance(node, Repeat):
            yield from self._unit(node.part)
        elif isinstance(node, Choice):
            for part in node.parts:
                yield from self._unit(part)
        elif isinstance(node, Row):
            fixed = [part for part in node.parts if not self.empty(part)]
            for part in (fixed or node.parts) if len(fixed) < 2 else ():
                yield from self._unit(part)

    def _reaches(self, name: str, wanted: str) -> bool:
        seen, ahead = {name}, [name]
        while ahead:
            here = ahead.pop()
            if here == wanted:
                return True
            new = self._units[here] - seen
            seen |= new
            ahead += new
        return False


class _Mender:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._sight = _Sight(rules)
        self._copied = 0
        """What was written out of rules where they are repeated."""

    def mended(self, node: Node) -> Node:
        if isinstance(node, Row | Choice):
            return type(node)(tuple(map(self.mended, node.parts)))
        if not isinstance(node, Repeat):
            return node
        if node.most is not None or node.least > 1:
            return node._replace(part=self.mended(node.part))
        found: dict[Node, None] = {}
        rules: set[str] = set()
        self._collect(node.part, found, rules)
        self._copied += sum(map(cost, found)) if rules else 0
        if self._copied > MAX_COST:
            raise GrammarError("its rules name one another in too many repetitions")
        ways = tuple(map(self.mended, found))
        least = 0 if self._sight.empty(node.part) else node.least
        return Repeat(ways[0] if len(ways) == 1 else Choice(ways), least, None)

    def _collect(self, node: Node, found: dict[Node, None], rules: set[str]) -> None:
        """Into ``found``, in order, what is repeated by an endless repetition of ``node``; ``rules`` are those
        that were written out for it."""
        if isinstance(node, Choice) or (isinstance(node, Row) and len(node.parts) < 2):
            for part in node.parts:
                self._collect(part, found, rules)
        elif isinstance(node, Repeat) and node.least < 2 and node.most in (None, 1):
            self._collect(node.part, found, rules)
        elif isinstance(node, Name) and node.name not in rules and self._sight.alone(node):
            rules.add(node.name)
            self._collect(self._rules[node.name], found, rules)
        else:
            found[node] = None


def _growing(rules: Rules, holds: Callable[[Node, set[str]], bool]) -> set[str]:
    """The rules of which something holds that may depend on its holding of others."""
    found: set[str] = set()
    while new := {name for name, node in rules.items() if name not in found and holds(node, found)}:
        found |= new
    return found


def _empty(node: Node, found: set[str]) -> bool:
    if isinstance(node, Name):
        return node.name in found
    if isinstance(node, Repeat):
        return node.least == 0 or _empty(node.part, found)
    if isinstance(node, Row | Choice):
        return (any if isinstance(node, Choice) else all)(_empty(part, found) for part in node.parts)
    return False


def _all(node: Node) -> Iterator[Node]:
    yield node
    parts = (node.part,) if isinstance(node, Repeat) else node.parts if isinstance(node, Row | Choice) else ()
    for part in parts:
        yield from _all(part)
