"""Custom tools: called with a text, of any kind or of a grammar's. Models know functions alone, so to them each is a
function with one parameter ``input``, whose JSON is taken off again on the way out."""

from __future__ import annotations

import json
from typing import Literal

from quintet_chat.tools import lark, regex
from quintet_chat.tools.base import ToolFunction
from quintet_chat.tools.text_grammar import GrammarError, Node, as_ebnf, check
from quintet_chat.tools.text_readings import inlined, with_few

PARAMETERS = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
_LEAD, _TRAIL = range(0xD800, 0xDC00), range(0xDC00, 0xE000)


def function_of(name: str, syntax: Literal["lark", "regex"] | None = None, definition: str = "") -> ToolFunction:
    """A custom tool as the function that the model calls. Raises GrammarError for what no grammar is made of."""
    if syntax is None:
        return ToolFunction(name, PARAMETERS, is_custom=True)
    try:
        ebnf = _ebnf(syntax, definition)
    except RecursionError:
        raise GrammarError("it is nested too deep") from None
    return ToolFunction(name, PARAMETERS, is_custom=True, ebnf=ebnf)


def _ebnf(syntax: Literal["lark", "regex"], definition: str) -> str:
    start = "pattern"
    rules: dict[str, Node] = {}
    if syntax == "lark":
        rules, start = lark.rules_of(definition)
    else:
        rules[start] = regex.node_of(definition)
    check(rules)
    return as_ebnf(inlined(with_few(rules)), start)


def arguments_of(given: str) -> str:
    """The arguments of the function that stands for a custom tool."""
    return json.dumps({"input": given}, ensure_ascii=False)


class InputReader:
    """Reads the text out of the JSON object of a call's arguments, as it grows."""

    def __init__(self) -> None:
        self._buffer = ""
        self._quotes = 0
        """How many of the object's quotes were read; the text is behind the third."""

    def feed(self, arguments: str) -> str:
        """The next piece of the text. Escapes that are not complete are held back."""
        self._buffer += arguments
        while self._quotes < 3:
            _, quote, rest = self._buffer.partition('"')
            if not quote:
                self._buffer = ""
                return ""
            self._buffer, self._quotes = rest, self._quotes + 1
        if self._quotes > 3:
            return ""
        end, is_whole = _end_of(self._buffer)
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        self._quotes += is_whole
        return str(json.loads(f'"{text}"', strict=False))


def _end_of(text: str) -> tuple[int, bool]:
    """Where what can be read of a JSON string ends, and whether that is its closing quote."""
    place = 0
    while place < len(text):
        if text[place] == '"':
            return place, True
        length = 1 if text[place] != "\\" else _escape(text, place)
        if not length:
            return place, False
        place += length
    return place, False


def _escape(text: str, place: int) -> int:
    """The length of an escape, with the second half of a pair; 0 while it is not complete."""
    if text[place + 1 : place + 2] != "u":
        return 2 if place + 2 <= len(text) else 0
    if place + 6 > len(text):
        return 0
    if int(text[place + 2 : place + 6], 16) not in _LEAD:
        return 6
    follows = text[place + 6 : place + 12]
    if not "\\u".startswith(follows[:2]):
        return 6
    return 12 if len(follows) == 6 else 0
