"""What msgspec says of wrong data, in words for the person who wrote it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

_AT = re.compile(r" - at `\$(.*)`$")
_AT_KEY = re.compile(r" - at `key` in `\$(.*)`$")
_PART = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]|\[\.\.\.\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`")
_MISSING = re.compile(r"Object missing required field `(.*?)`")
_ENUM = re.compile(r"Invalid enum value '?(.*?)'?$")
_TYPES = re.compile(r"`([a-z| ]+)`")
_WORDS = {
    "object": "keys with values",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


class Complaint(NamedTuple):
    """A message of msgspec's ValidationError, taken apart. At most one of the last three is set."""

    path: list[str | int]
    """Where: keys and indices, empty for the whole."""
    text: str
    """What, in words."""
    of_key: bool = False
    """Whether it is about a key of the mapping at ``path``, which is none of the type that keys have there."""
    unknown: str | None = None
    """A key that there is not."""
    missing: str | None = None
    """A key that is needed."""
    choice: str | None = None
    """A word that is none of those that may stand there."""


def read(message: str) -> Complaint:
    of_key = _AT_KEY.search(message)
    at = of_key or _AT.search(message)
    path: list[str | int] = [
        int(part[2]) if part[2] else part[1] for part in _PART.finditer(at[1] if at else "") if part[1] or part[2]
    ]
    text = message[: at.start()] if at else message
    found = [match[1] if (match := pattern.match(text)) else None for pattern in (_UNKNOWN, _MISSING, _ENUM)]
    return Complaint(path, _TYPES.sub(_in_words, text[:1].lower() + text[1:]), of_key is not None, *found)


def meant(word: str, names: Iterable[str], *, end: str = ".", likeness: float = 0.6) -> str:
    """``; did you mean 'NAME'?`` with the nearest of ``names``, or ``end`` where none is near."""
    near = difflib.get_close_matches(word, list(names), 1, likeness)
    return f"; did you mean {near[0]!r}?" if near else end


def _in_words(types: re.Match[str]) -> str:
    names = types[1].split(" | ")
    # That a key may stand there with nothing behind it is no advice.
    return " or ".join(_WORDS.get(each, each) for each in names if each != "null" or len(names) == 1)
