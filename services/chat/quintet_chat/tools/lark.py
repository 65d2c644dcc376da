"""Lark's grammars, as far as they are context-free: https://lark-parser.readthedocs.io/en/stable/grammar.html

There is no lexer in between: a text is allowed that the rules can make of some texts of the terminals. What ``%ignore``
names may stand between terminals, before the first and behind the last.
"""

from __future__ import annotations

import re
from ast import literal_eval
from typing import NamedTuple

from quintet_chat.tools import regex
from quintet_chat.tools.text_grammar import Chars, Choice, GrammarError, Name, Node, Repeat, Row, text

START, _IGNORED, _WHOLE = "start", "%ignore", "%whole"
_MAX_DEPTH = 50
_DIGITS = 9
_COMMON = {
    "DIGIT": "[0-9]", "HEXDIGIT": "[a-fA-F0-9]", "INT": "[0-9]+", "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "FLOAT": r"[0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_FLOAT": r"[+-]?([0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)",
    "NUMBER": r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "ESCAPED_STRING": r'"([^"\\\n]|\\[^\n])*"',
    "LCASE_LETTER": "[a-z]", "UCASE_LETTER": "[A-Z]", "LETTER": "[a-zA-Z]", "WORD": "[a-zA-Z]+",
    "CNAME": "[a-zA-Z_][a-zA-Z0-9_]*", "WS_INLINE": r"[ \t]+", "WS": r"[ \t\f\r\n]+", "CR": r"\r", "LF": r"\n",
    "NEWLINE": r"(\r?\n)+", "SH_COMMENT": r"#[^\n]*", "CPP_COMMENT": r"//[^\n]*", "SQL_COMMENT": r"--[^\n]*",
    "C_COMMENT": r"/\*([^*]|\*+[^*/])*\*+/",
}  # fmt: skip
"""The terminals of ``%import common``."""

_TOKEN = re.compile(
    r"""(?P<space>[ \t\f\r]+|//[^\n]*|\#[^\n]*)
    |(?P<line>\n)
    |(?P<string>"(?:[^"\\\n]|\\.)*"i?)
    |(?P<regexp>/(?!/)(?:[^/\\\n]|\\.)+/[imslux]*)
    |(?P<name>[!?]?_?[a-z][_a-z0-9]*|_?[A-Z][_A-Z0-9]*)
    |(?P<directive>%[a-z]+)
    |(?P<number>-?\d+)
    |(?P<mark>->|\.\.|[:|()\[\]*+?~.,{}])""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def rules_of(definition: str) -> tuple[dict[str, Node], str]:
    """The rules of a grammar, and the one that it begins with. Raises GrammarError."""
    reader = _Reader(_tokens(definition))
    reader.read()
    if START not in reader.rules:
        raise GrammarError("there is no rule 'start'")
    if not reader.ignored:
        return reader.rules, START
    ignored = Repeat(Choice(tuple(reader.ignored)), 0, None)
    whole = Row((Name(_IGNORED), Name(START)))
    return {**reader.rules, _IGNORED: ignored, _WHOLE: whole}, _WHOLE


def _tokens(definition: str) -> list[_Token]:
    tokens, place, line = [], 0, 1
    while place < len(definition):
        found = _TOKEN.match(definition, place)
        if found is None:
            raise GrammarError(f"line {line}: {definition[place : place + 10]!r} is not understood")
        kind = str(found.lastgroup)
        if kind != "space":
            tokens.append(_Token(kind, found[0], line))
        line += found[0].count("\n")
        place = found.end()
    return [*tokens, _Token("line", "\n", line), _Token("end", "", line)]


class _Reader:
    def __init__(self, tokens: list[_Token]) -> None:
        self.rules: dict[str, Node] = {}
        self.ignored: list[Node] = []
        self._tokens = tokens
        self._skips = any(token.text == "%ignore" for token in tokens)
        self._at = 0
        self._depth = 0
        self._in_rule = False

    def read(self) -> None:
        while self._next.kind != "end":
            if self._take("line"):
                continue
            if self._next.kind == "directive":
                self._directive()
            else:
                self._definition()
            self._expect("line")

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, kind: str, written: str | None = None) -> _Token | None:
        token = self._next
        if token.kind != kind or (written is not None and token.text != written):
            return None
        self._at += 1
        return token

    def _expect(self, kind: str, written: str | None = None) -> _Token:
        token = self._take(kind, written)
        if token is None:
            found = "the line's end" if self._next.text in ("\n", "") else repr(self._next.text[:40])
            raise GrammarError(f"line {self._next.line}: {found} is not expected here")
        return token

    def _definition(self) -> None:
        name = self._expect("name").text.lstrip("!?")
        if self._take("mark", "."):
            self._expect("number")  # a priority says how to read a text, not which there are
        if self._next.text == "{":
            raise GrammarError(f"line {self._next.line}: templates are not read here")
        self._expect("mark", ":")
        self._in_rule = name.strip("_").islower()
        if name in self.rules:
            raise GrammarError(f"{name!r} is defined twice")
        self.rules[name] = self._choice()

    def _directive(self) -> None:
        directive = self._expect("directive")
        if directive.text == "%ignore":
            self._in_rule = False
            self.ignored.append(self._choice())
        elif directive.text == "%import":
            self._import(directive.line)
        else:
            raise GrammarError(f"line {directive.line}: {directive.text} is not read here")

    def _import(self, line: int) -> None:
        source = self._expect("name").text
        names = {}
        if self._take("mark", "."):
            name = self._expect("name").text
            names[self._expect("name").text if self._take("mark", "->") else name] = name
        else:
            self._expect("mark", "(")
            while not self._take("mark", ")"):
                name = self._expect("name").text
                names[name] = name
                self._take("mark", ",")
        for here, there in names.items():
            if source != "common" or there not in _COMMON:
                raise GrammarError(f"line {line}: there is no {source}.{there} to import; there is common")
            self.rules[here] = regex.node_of(_COMMON[there])

    def _choice(self) -> Node:
        parts = [self._row()]
        while self._goes_on() and self._take("mark", "|"):
            parts.append(self._row())
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _goes_on(self) -> bool:
        """Skip line breaks inside brackets and before ``|``."""
        ahead = self._at
        while self._tokens[ahead].kind == "line":
            ahead += 1
        if self._depth or self._tokens[ahead].text == "|":
            self._at = ahead
        return True

    def _row(self) -> Node:
        parts = []
        while self._goes_on() and (part := self._repeated()) is not None:
            parts.append(part)
        if self._take("mark", "->"):
            self._expect("name")
        return parts[0] if len(parts) == 1 else Row(tuple(parts))

    def _repeated(self) -> Node | None:
        part = self._one()
        if part is None:
            return None
        if self._take("mark", "*"):
            return Repeat(part, 0, None)
        if self._take("mark", "+"):
            return Repeat(part, 1, None)
        if self._take("mark", "?"):
            return Repeat(part, 0, 1)
        if self._take("mark", "~"):
            least = most = self._number()
            if self._take("mark", ".."):
                most = self._number()
            if not 0 <= least <= most:
                raise GrammarError(f"line {self._next.line}: {least}..{most} is no number of times")
            return Repeat(part, least, most)
        return part

    def _number(self) -> int:
        return int(self._expect("number").text[:_DIGITS])  # so many are too many already

    def _one(self) -> Node | None:
        for opening, closing in (("(", ")"), ("[", "]")):
            if self._take("mark", opening):
                inner = self._inside()
                self._expect("mark", closing)
                return inner if opening == "(" else Repeat(inner, 0, 1)
        if name := self._take("name"):
            if self._next.text == "{":
                raise GrammarError(f"line {name.line}: templates are not read here")
            return self._terminal(Name(name.text), is_rule=name.text.strip("_").islower())
        if string := self._take("string"):
            if self._take("mark", ".."):
                return self._terminal(Chars(((_character(string), _character(self._expect("string"))),)))
            any_case = string.text.endswith("i")
            return self._terminal(text(_unquoted(string), any_case=any_case))
        if found := self._take("regexp"):
            pattern, _, flags = found.text[1:].rpartition("/")
            return self._terminal(regex.node_of(pattern.replace("\\/", "/"), flags))
        return None

    def _inside(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise GrammarError(f"line {self._next.line}: brackets are nested more than {_MAX_DEPTH} levels deep")
        inner = self._choice()
        self._goes_on()
        self._depth -= 1
        return inner

    def _terminal(self, node: Node, *, is_rule: bool = False) -> Node:
        """A terminal of a rule, with what is ignored behind it."""
        return Row((node, Name(_IGNORED))) if self._in_rule and self._skips and not is_rule else node


def _unquoted(token: _Token) -> str:
    try:
        return str(literal_eval(token.text.rstrip("i")))
    except (ValueError, SyntaxError):
        raise GrammarError(f"line {token.line}: {token.text[:40]} is no string") from None


def _character(token: _Token) -> int:
    written = _unquoted(token)
    if len(written) != 1:
        raise GrammarError(f"line {token.line}: a range goes from one character to another")
    return ord(written)
