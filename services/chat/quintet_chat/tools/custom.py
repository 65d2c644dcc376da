"""Custom tools: called with a text, of any kind or of a grammar's. Models know functions alone, so to them each is a
function with one parameter ``input``, whose JSON is taken off again on the way out."""

from __future__ import annotations

import json
import re
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
_LEAD, _TRAIL = r"u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"\\(?:{_LEAD}{_TRAIL}|u[0-9a-fA-F]{{4}}|.)", re.DOTALL)
"""What may be an escape of JSON, the two halves of a character together."""
_BEGUN = re.compile(rf"\\(?:u[0-9a-fA-F]{{0,3}}|{_LEAD}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?)?\Z")
"""One at the end of a text that may go on."""


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
        return _ESCAPE.sub(_meant, text)


def _end_of(text: str) -> tuple[int, bool]:
    """Where what can be read of a JSON string ends, and whether that is its closing quote."""
    place = 0
    while place < len(text) and text[place] != '"' and not _BEGUN.match(text, place):
        escape = _ESCAPE.match(text, place)
        place = escape.end() if escape else place + 1
    return place, text[place : place + 1] == '"'


def _meant(escape: re.Match[str]) -> str:
    """What an escape stands for. One that is none stays: not every call is held to a grammar from its beginning on."""
    try:
        meant = str(json.loads(f'"{escape[0]}"'))
    except ValueError:
        return escape[0]
    return "\ufffd" if "\ud800" <= meant <= "\udfff" else meant  # half of a character cannot be sent
