"""What a family of tool-call formats is: how a model writes a call, as a grammar and as a parser of what it writes."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

JsonSchema = dict[str, Any]

NO_ARGUMENTS: JsonSchema = {"type": "object", "properties": {}, "additionalProperties": False}
"""What a function without parameters takes."""

MAX_SPACE = 1
"""Whitespace characters in a row inside arguments. Small models would fill their whole answer with it otherwise."""


@dataclass(frozen=True)
class ToolFunction:
    """A function that the model may call."""

    name: str
    parameters: JsonSchema
    strict: bool = False
    is_custom: bool = False
    """Whether it stands for a custom tool, see ``quintet_chat.tools.custom``."""
    ebnf: str | None = None
    """Of a custom tool: what its input is, as it is written in a JSON string."""


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Reasoning:
    """The next piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallStart:
    index: int
    id: str
    name: str
    is_custom: bool = False


@dataclass(frozen=True)
class CallInput:
    """The next piece of the text that a custom tool is called with."""

    index: int
    text: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of the JSON text of a call's arguments."""

    index: int
    text: str


Piece = Text | Reasoning | CallStart | CallArguments | CallInput


class Parser(Protocol):
    """Takes a choice's text apart as it grows. However the text is cut, the pieces come to the same."""

    def feed(self, text: str) -> list[Piece]: ...

    def close(self) -> list[Piece]:
        """What was held back when the text ended."""


class Stepping(ABC):
    """A parser that goes through the text in steps, from one mark to the next."""

    def __init__(self) -> None:
        self._buffer = ""
        """Text that is not taken apart yet."""

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    @abstractmethod
    def _step(self, pieces: list[Piece]) -> bool:
        """Take what can be taken off the buffer; False when more text is needed."""


class Family(Protocol):
    """One format of tool calls. Formats are xgrammar structural tag formats, as plain data."""

    @property
    def name(self) -> str: ...

    @property
    def marks(self) -> Sequence[str]:
        """What calls are written with, as far as it may be special tokens, which then must stay in the text."""

    def calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        """The format of an answer that is a call, or several, and nothing else."""

    def text_or_calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        """The format of a free answer in which a call, once begun, is valid."""

    def answer(self, content: dict[str, Any]) -> dict[str, Any]:
        """The format of an answer that is ``content``, with what the format of the model's messages puts around it."""

    def parser(self, functions: Sequence[ToolFunction]) -> Parser: ...

    def call_text(self, name: str, arguments: str) -> str:
        """A call as the model writes it, for templates that cannot."""


def arguments_format(function: ToolFunction) -> dict[str, Any]:
    """The structural tag format of a function's arguments."""
    if function.ebnf is not None:
        return tag('{"input": ', input_format(function.ebnf), "}")
    return {"type": "json_schema", "json_schema": function.parameters, "max_whitespace_cnt": MAX_SPACE}


def input_format(ebnf: str) -> dict[str, Any]:
    """A custom tool's input as a JSON string."""
    return tag('"', {"type": "grammar", "grammar": ebnf}, '"')


def tag(begin: str, content: dict[str, Any], end: str) -> dict[str, Any]:
    """``content`` between two fixed texts."""
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def one_of(formats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "or", "elements": list(formats)}


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
