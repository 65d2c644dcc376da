"""What a family of tool-call formats is: how a model writes a call, as a grammar and as a parser of what it writes."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

JsonSchema = dict[str, Any]

NO_ARGUMENTS: JsonSchema = {"type": "object", "properties": {}, "additionalProperties": False}
"""What a function without parameters takes."""

MAX_SPACE = 1
"""Whitespace characters in a row inside arguments. Small models would fill their whole answer with it otherwise."""

MAX_OPENING = 4096
"""Characters after which something that began like a call is taken for text."""


@dataclass(frozen=True)
class ToolFunction:
    """A function that the model may call."""

    name: str
    parameters: JsonSchema


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class CallStart:
    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of the JSON text of a call's arguments."""

    index: int
    text: str


Piece = Text | CallStart | CallArguments


class Parser(Protocol):
    """Takes a choice's text apart as it grows."""

    def feed(self, text: str) -> list[Piece]: ...

    def close(self) -> list[Piece]:
        """What was held back when the text ended."""


class Family(Protocol):
    """One format of tool calls. Formats are xgrammar structural tag formats, as plain data."""

    @property
    def name(self) -> str: ...

    @property
    def special_tokens(self) -> bool:
        """Whether calls are written with special tokens, which then must stay in the text."""

    def calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        """The format of an answer that is a call, or several, and nothing else."""

    def text_or_calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        """The format of a free answer in which a call, once begun, is valid."""

    def parser(self, functions: Sequence[ToolFunction]) -> Parser: ...

    def call_text(self, name: str, arguments: str) -> str:
        """A call as the model writes it, for templates that cannot."""


def arguments_format(function: ToolFunction) -> dict[str, Any]:
    """The structural tag format of a function's arguments."""
    return {"type": "json_schema", "json_schema": function.parameters, "max_whitespace_cnt": MAX_SPACE}


def tag(begin: str, function: ToolFunction, end: str) -> dict[str, Any]:
    """A call that starts and ends with fixed text around its arguments."""
    return {"type": "tag", "begin": begin, "content": arguments_format(function), "end": end}


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class JsonObject:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        """How many characters belong to the object, if it ends in ``text``; None while it goes on."""
        for position, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return position + 1
        return None


class PatternParser:
    """A parser for calls that are ``opening``, a JSON object, ``closing``.

    ``opening`` matches all before the arguments and has the function's name as group ``name``; ``markers`` are texts
    with which an opening begins; what may still become one is held back. ``closing`` is skipped after the arguments.
    Text that begins like a call and turns out to be none is passed on as text. Whitespace between calls is dropped.
    """

    def __init__(
        self, opening: re.Pattern[str], markers: Sequence[str], closing: re.Pattern[str], end: str = ""
    ) -> None:
        self._opening = opening
        self._markers = markers
        self._closing = closing
        self._end = end
        self._buffer = ""
        self._space = ""
        self._arguments: JsonObject | None = None
        self._is_closing = False
        self._calls = 0

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def close(self) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        if self._arguments is not None or self._is_closing:
            return []
        pieces: list[Piece] = []
        self._text(rest, pieces)
        if self._space and not self._calls:
            pieces.append(Text(self._space))
        return pieces

    def _step(self, pieces: list[Piece]) -> bool:
        """Do the next thing that the buffer allows; False when more text is needed."""
        if self._arguments is not None:
            return self._read_arguments(pieces, self._arguments)
        if self._is_closing:
            return self._read_closing()
        if match := self._opening.search(self._buffer):
            self._text(self._buffer[: match.start()], pieces)
            self._space = ""
            pieces.append(CallStart(self._calls, new_call_id(), match["name"]))
            self._buffer = self._buffer[match.end() :]
            self._arguments = JsonObject()
            return True
        held = self._held_from()
        self._text(self._buffer[:held], pieces)
        self._buffer = self._buffer[held:]
        return False

    def _read_arguments(self, pieces: list[Piece], arguments: JsonObject) -> bool:
        end = arguments.feed(self._buffer)
        text, self._buffer = (self._buffer, "") if end is None else (self._buffer[:end], self._buffer[end:])
        if text:
            pieces.append(CallArguments(self._calls, text))
        if end is None:
            return False
        self._calls += 1
        self._arguments, self._is_closing = None, True
        return True

    def _read_closing(self) -> bool:
        match = self._closing.match(self._buffer)
        if match is None and len(self._buffer) < len(self._end) + 16:
            return False
        self._buffer = self._buffer[match.end() :] if match else self._buffer
        self._is_closing = False
        return True

    def _held_from(self) -> int:
        """Where the part of the buffer begins that may still become a call."""
        for marker in self._markers:
            found = self._buffer.find(marker)
            if found >= 0:
                is_text = self._end and self._end in self._buffer[found:]
                return len(self._buffer) if is_text or len(self._buffer) - found > MAX_OPENING else found
        longest = max(map(len, self._markers), default=1) - 1
        for start in range(max(0, len(self._buffer) - longest), len(self._buffer)):
            if any(marker.startswith(self._buffer[start:]) for marker in self._markers):
                return start
        return len(self._buffer)

    def _text(self, text: str, pieces: list[Piece]) -> None:
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if self._calls:
            body = body.lstrip() if not body.strip() else body
        if body:
            pieces.append(Text(body))
