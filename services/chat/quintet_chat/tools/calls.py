"""Calls that are arguments between fixed texts: what all families but harmony have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from quintet_chat.tools.base import (
    CallArguments,
    CallStart,
    Parser,
    Piece,
    Stepping,
    Text,
    ToolFunction,
    new_call_id,
    one_of,
    tag,
)
from quintet_chat.tools.scan import NAME, PARTIAL, Match, Pattern


class ArgumentsReader(Protocol):
    """Reads the arguments of one call as they come."""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The next part of their JSON text, and what follows them, once they have ended.

        ``text`` goes on where the text before has ended; what cannot be told yet is held back.
        """


@dataclass(frozen=True, kw_only=True)
class Calls(ABC):
    """A family whose calls are ``begin``, the arguments, ``end``. NAME in ``begin`` and ``trigger`` is the function's.

    ``opening`` and ``closing`` are the same for the parser, as parts between which whitespace may vary. Calls that
    come as one list have ``list_open`` and ``list_close`` around it. ``separator`` is between two calls; None: the
    format has no way to write a second call. ``trigger`` is what in a free answer can be nothing but a call.
    """

    name: str
    begin: str
    end: str
    opening: Sequence[str]
    closing: Sequence[str]
    trigger: str
    separator: str | None = None
    list_open: str = ""
    list_close: str = ""
    only_offered: bool = False
    """Whether a call is told from text by its function's name alone."""
    marks: Sequence[str] = ()
    forgotten: str = ""
    """The first part of ``opening``, with the space behind it, where models leave that out now and then."""

    before: ClassVar[str]
    """What the arguments begin with."""

    @abstractmethod
    def arguments(self, function: ToolFunction) -> dict[str, Any]:
        """The structural tag format of a function's arguments. Raises ApiError 400 for what it cannot hold."""

    @abstractmethod
    def reader(self, function: ToolFunction | None) -> ArgumentsReader:
        """For the arguments of one call; of a function that was not offered, if it is None."""

    @abstractmethod
    def arguments_text(self, arguments: str) -> str:
        """A JSON object of arguments as the model writes it."""

    def calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        tags = [tag(self._begin(each.name), self.arguments(each), self.end) for each in functions]
        if self.separator is None:
            return one_of(tags)
        inner = {
            "type": "tags_with_separator",
            "tags": tags,
            "separator": self.separator,
            "at_least_one": True,
            "stop_after_first": not several,
        }
        return tag(self.list_open, inner, self.list_close) if self.list_open else inner

    def text_or_calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        calls = self.calls(functions, several)
        tags = [calls] if self.list_open else calls.get("tags") or calls["elements"]
        once = self.separator is None or bool(self.list_open) or not several
        triggers = list(dict.fromkeys(self.trigger.replace(NAME, each.name) for each in functions))
        if self.forgotten:
            triggers.append(self.begin.removeprefix(self.forgotten).partition(NAME)[0])
            tags = [*tags, *({**each, "begin": each["begin"].removeprefix(self.forgotten)} for each in tags)]
        return {"type": "triggered_tags", "triggers": triggers, "tags": tags, "stop_after_first": once}

    def answer(self, content: dict[str, Any]) -> dict[str, Any]:
        return content

    def parser(self, functions: Sequence[ToolFunction]) -> Parser:
        return CallParser(self, {each.name: each for each in functions})

    def call_text(self, name: str, arguments: str) -> str:
        return f"{self.list_open}{self._begin(name)}{self.arguments_text(arguments)}{self.end}{self.list_close}"

    def _begin(self, name: str) -> str:
        return self.begin.replace(NAME, name)


class CallParser(Stepping):
    """Reads the calls of one family. What only begins like a call is text; whitespace around calls is dropped."""

    def __init__(self, family: Calls, functions: Mapping[str, ToolFunction]) -> None:
        super().__init__()
        between = [family.separator.strip()] if family.separator and family.separator.strip() else []
        names = list(functions) if family.only_offered else None
        openings = [[*family.list_open.split(), *family.opening], *([family.opening[1:]] if family.forgotten else [])]
        self._firsts = [Pattern(each, before=family.before, names=names) for each in openings]
        self._next = Pattern([*between, *family.opening], before=family.before, names=names)
        self._closing = Pattern(family.closing) if family.closing else None
        self._list_close = Pattern([family.list_close.strip()]) if family.list_close else None
        self._family = family
        self._functions = functions
        self._space = ""
        self._arguments: ArgumentsReader | None = None
        self._is_closing = False
        self._in_list = False
        self._calls = 0

    def close(self) -> list[Piece]:
        """A call that was cut off ends with what there is of it; an opening that never became a call is text."""
        rest, self._buffer = self._buffer, ""
        pieces: list[Piece] = []
        if self._arguments is None and not self._is_closing and not self._in_list:
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
        if self._in_list:
            return self._read_list(pieces)
        candidates = [found for first in self._firsts if (found := first.search(self._buffer)) is not None]
        if not candidates:
            self._text(self._buffer, pieces)
            self._buffer = ""
            return False
        start, match = min(candidates, key=lambda found: found[0])
        self._text(self._buffer[:start], pieces)
        self._buffer = self._buffer[start:]
        if match is PARTIAL:
            return False
        self._start(match.name, match.end - start, pieces)
        return True

    def _start(self, name: str, length: int, pieces: list[Piece]) -> None:
        self._space = ""
        pieces.append(CallStart(self._calls, new_call_id(), name))
        self._buffer = self._buffer[length:].lstrip()
        self._arguments = self._family.reader(self._functions.get(name))

    def _read_arguments(self, pieces: list[Piece], arguments: ArgumentsReader) -> bool:
        text, rest = arguments.feed(self._buffer)
        self._buffer = rest or ""
        if text:
            pieces.append(CallArguments(self._calls, text))
        if rest is None:
            return False
        self._calls += 1
        self._arguments, self._is_closing = None, True
        return True

    def _read_closing(self) -> bool:
        if self._closing is not None:
            match = self._after_space(self._closing)
            if match is PARTIAL:
                return False
            if match is not None:
                self._buffer = self._buffer[match.end :]
        self._is_closing, self._in_list = False, self._list_close is not None
        return True

    def _read_list(self, pieces: list[Piece]) -> bool:
        """After a call of a list: the next one, or the list's end; anything else is text, and the list is over."""
        assert self._list_close is not None
        following, closing = self._after_space(self._next), self._after_space(self._list_close)
        if isinstance(following, Match):
            self._start(following.name, following.end, pieces)
            self._in_list = False
        elif isinstance(closing, Match):
            self._buffer = self._buffer[closing.end :]
            self._in_list = False
        elif following is PARTIAL or closing is PARTIAL:
            return False
        else:
            self._in_list = False
        return True

    def _after_space(self, pattern: Pattern) -> Any:
        return pattern.at(self._buffer, len(self._buffer) - len(self._buffer.lstrip()))

    def _text(self, text: str, pieces: list[Piece]) -> None:
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            pieces.append(Text(body))
