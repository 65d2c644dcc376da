"""Harmony, the format of gpt-oss: an answer is messages in channels, of which one may be addressed to a function.

A message is a header, ``<|message|>``, its content and an end. What is in the channel ``analysis`` is thinking. The
answer itself is in ``final``, what is said before a call in ``commentary``. A call ends the answer.
https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quintet_chat.tools.base import (
    CallArguments,
    CallStart,
    Parser,
    Piece,
    Reasoning,
    Stepping,
    Text,
    ToolFunction,
    arguments_format,
    new_call_id,
    one_of,
    tag,
)
from quintet_chat.tools.scan import overlap

_START, _MESSAGE = "<|start|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", _START)
_NEXT = f"{_START}assistant"
_ANALYSIS, _COMMENTARY, _FINAL = (f"<|channel|>{name}" for name in ("analysis", "commentary", "final"))
_HEADERS = (_START, "<|channel|>", "to=")
"""What an answer begins with that is in this format."""
_CHANNEL = re.compile(r"<\|channel\|>(\w+)")
_FUNCTION = re.compile(r"to=functions\.([a-zA-Z0-9_.-]+)")
_TO_ANYONE = re.compile(r"to=\S")


class Harmony:
    name = "harmony"
    marks = ("<|channel|>", "<|constrain|>", _MESSAGE, *_ENDS)

    def calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        del several  # a call ends the answer
        return self._after_others([one_of([_call(begin, each) for each in functions for begin in _begins(each.name)])])

    def text_or_calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        del several
        calls = [_call(begin, each) for each in functions for begin in _begins(each.name)]
        return self._after_others([one_of([*calls, _sequence([_const(_FINAL + _MESSAGE), {"type": "any_text"}])])])

    def answer(self, content: dict[str, Any]) -> dict[str, Any]:
        return self._after_others([_const(_FINAL + _MESSAGE), content])

    def parser(self, functions: Sequence[ToolFunction]) -> Parser:
        return HarmonyParser([each.name for each in functions])

    def call_text(self, name: str, arguments: str) -> str:
        return f"{_begins(name)[0]}{arguments}<|call|>"

    def _after_others(self, formats: list[dict[str, Any]]) -> dict[str, Any]:
        """``formats`` in a row, after any number of messages that think or say what comes next."""
        others = [tag(each + _MESSAGE, {"type": "any_text"}, f"<|end|>{_NEXT}") for each in (_ANALYSIS, _COMMENTARY)]
        return _sequence([{"type": "star", "content": one_of(others)}, *formats])


def _begins(name: str) -> list[str]:
    """The two ways in which a call is addressed."""
    json = f"<|constrain|>json{_MESSAGE}"
    return [f"{_COMMENTARY} to=functions.{name} {json}", f" to=functions.{name}{_COMMENTARY} {json}"]


def _call(begin: str, function: ToolFunction) -> dict[str, Any]:
    return tag(begin, arguments_format(function), "")


def _const(text: str) -> dict[str, Any]:
    return {"type": "const_string", "value": text}


def _sequence(elements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "sequence", "elements": elements}


class HarmonyParser(Stepping):
    """Reads the answer that follows ``<|start|>assistant``. ``names`` are the functions that may be called.

    What is addressed to anyone else counts as thinking, lest it be lost. An answer that does not begin as the format
    demands is text.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names
        self._at_start = True
        self._kind: type[Text] | type[Reasoning] | type[CallArguments] | None = None
        """Of the message that is read; None: its header is not complete."""
        self._calls = 0
        self._has_said: set[type[Piece]] = set()
        self._is_new = False
        """Whether the message has had no content yet."""

    @property
    def thinking(self) -> bool:
        return self._kind is Reasoning

    def close(self) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        pieces: list[Piece] = []
        if self._at_start:
            self._kind = Text
        if self._kind is not None and rest:
            self._content(rest, pieces)
        return pieces

    def _step(self, pieces: list[Piece]) -> bool:
        """Do the next thing that the buffer allows; False when more text is needed."""
        if self._at_start:
            return self._begin()
        if self._kind is None:
            return self._read_header(pieces)
        found = min((at for end in _ENDS if (at := self._buffer.find(end)) >= 0), default=None)
        cut = len(self._buffer) - max(overlap(self._buffer, end) for end in _ENDS) if found is None else found
        if cut:
            self._content(self._buffer[:cut], pieces)
        self._buffer = self._buffer[cut:]
        if found is None:
            return False
        self._kind = None
        return True

    def _begin(self) -> bool:
        stripped = self._buffer.lstrip()
        if any(header.startswith(stripped) for header in _HEADERS):
            return False
        self._at_start = False
        if not stripped.startswith(_HEADERS):
            self._kind = Text
        return True

    def _read_header(self, pieces: list[Piece]) -> bool:
        """The header of the next message, with the end of the last one before it."""
        header, found, rest = self._buffer.partition(_MESSAGE)
        if not found:
            return False
        self._buffer, self._is_new = rest, True
        channel, function = _CHANNEL.search(header), _FUNCTION.search(header)
        if function is not None and function[1] in self._names:
            self._kind = CallArguments
            pieces.append(CallStart(self._calls, new_call_id(), function[1]))
            self._calls += 1
        elif _TO_ANYONE.search(header) or (channel is not None and channel[1] == "analysis"):
            self._kind = Reasoning
        else:
            self._kind = Text
        return True

    def _content(self, text: str, pieces: list[Piece]) -> None:
        if self._kind is CallArguments:
            pieces.append(CallArguments(self._calls - 1, text))
            return
        kind = Reasoning if self._kind is Reasoning else Text
        if self._is_new and kind in self._has_said:
            text = f"\n\n{text}"  # a message of its own
        self._is_new = False
        self._has_said.add(kind)
        pieces.append(kind(text))
