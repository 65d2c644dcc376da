"""Recognising parts of a text that arrives in pieces: fixed words with spaces between them, and JSON objects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Literal, NamedTuple

NAME = "\0name"
"""Stands for a function's name among the parts of a Pattern."""

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[a-zA-Z0-9_.-]*")


class Verdict(Enum):
    PARTIAL = "the text so far may become a match"


PARTIAL: Literal[Verdict.PARTIAL] = Verdict.PARTIAL


class Match(NamedTuple):
    end: int
    name: str


class Pattern:
    """Parts that follow one another, with whitespace between them or none. A part may be NAME.

    ``before`` is what must come next without being a part of the match. ``names`` are the only ones that NAME stands
    for; by default it is any name that a function may have.
    """

    def __init__(self, parts: Sequence[str], before: str = "", names: Sequence[str] | None = None) -> None:
        self._parts = parts
        self._before = before
        self._names = names if names is None else sorted(names, key=len, reverse=True)
        firsts = (self._names or ["."]) if parts[0] == NAME else [parts[0]]
        self._first = re.compile("|".join(sorted({re.escape(first[0]) for first in firsts})))

    def at(self, text: str, start: int = 0) -> Match | Literal[Verdict.PARTIAL] | None:
        """The match at ``start``, whether there may be one when more text has come, or None."""
        position, name = start, ""
        for index, part in enumerate([*self._parts, self._before]):
            if index and not part[:1].isspace():
                end = position
                position = _end_of(_SPACE, text, position)
                if index == len(self._parts) and not part:
                    return Match(end, name)
            if part == NAME:
                found = self._name(text, position)
                if not isinstance(found, str):
                    return found
                name, position = found, position + len(found)
            elif text.startswith(part, position):
                position += len(part)
            else:
                return PARTIAL if part.startswith(text[position:]) else None
        return Match(position - len(self._before), name)

    def search(self, text: str) -> tuple[int, Match | Literal[Verdict.PARTIAL]] | None:
        """The first place where the pattern is or may come to be."""
        for candidate in self._first.finditer(text):
            if (found := self.at(text, candidate.start())) is not None:
                return candidate.start(), found
        return None

    def _name(self, text: str, position: int) -> str | Literal[Verdict.PARTIAL] | None:
        if self._names is None:
            end = _end_of(_WORD, text, position)
            if end == len(text):
                return PARTIAL
            return text[position:end] or None
        for name in self._names:
            if text.startswith(name, position):
                return name
            if name.startswith(text[position:]):
                return PARTIAL
        return None


class _Strings:
    """Tells which characters of a JSON text are inside its strings."""

    def __init__(self) -> None:
        self._inside = False
        self._escaped = False

    def cover(self, character: str) -> bool:
        """Whether the next character is inside a string or one of its quotes."""
        if not self._inside:
            self._inside = character == '"'
            return self._inside
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._inside = False
        return True


class JsonObject:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._strings = _Strings()

    def feed(self, text: str) -> int | None:
        """How many characters belong to the object, if it ends in ``text``; None while it goes on."""
        for position, character in enumerate(text):
            if self._strings.cover(character):
                continue
            if character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return position + 1
        return None


class JsonBeforeMark:
    """Finds the end of any JSON value that arrives in pieces and is followed by a mark that begins with ``<``."""

    def __init__(self) -> None:
        self._strings = _Strings()

    def feed(self, text: str) -> int | None:
        """How many characters are before the mark, if it begins in ``text``; None while the value goes on."""
        for position, character in enumerate(text):
            if not self._strings.cover(character) and character == "<":
                return position
        return None


def _end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Where a pattern that matches anything, if only the empty text, ends."""
    match = pattern.match(text, start)
    assert match is not None
    return match.end()


def overlap(text: str, word: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``word``, short of all of it."""
    return next((size for size in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:size])), 0)
