"""How the text of an answer is taken apart: what the model thinks, what it says, what it calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from quintet_chat.api.tool_plan import ToolPlan
from quintet_chat.protocol import Delta
from quintet_chat.tools import HARMONY
from quintet_chat.tools.base import CallArguments, CallInput, CallStart, Parser, Piece, Text
from quintet_chat.tools.custom import InputReader
from quintet_chat.tools.harmony import HarmonyParser
from quintet_chat.tools.thinking import TAGS, ThinkingParser


@dataclass(frozen=True)
class Reading:
    """``thinking`` is the model's style of it, if it has one. ``inside``: the prompt has opened the thinking."""

    plan: ToolPlan = field(default_factory=ToolPlan)
    thinking: str | None = None
    inside: bool = False

    def reader(self) -> ChoiceReader:
        """One for each choice."""
        return ChoiceReader(self)


class ChoiceReader:
    """Reads one choice. ``called`` tells whether it has called a function."""

    def __init__(self, reading: Reading) -> None:
        self._first: HarmonyParser | ThinkingParser | None = None
        self._calls: Parser | None = None
        if reading.thinking == HARMONY.name:
            self._first = HarmonyParser([each.name for each in reading.plan.functions])
        else:
            self._calls = reading.plan.parser()
            if reading.thinking is not None:
                self._first = ThinkingParser(TAGS[reading.thinking], reading.inside)
        self._custom = {each.name for each in reading.plan.functions if each.is_custom}
        self._inputs: dict[int, InputReader] = {}
        """Of the calls of custom tools, by their index."""
        self.called = False
        self.reasoning_tokens = 0
        self.raw = ""
        """What the last ``read`` or ``close`` found behind the thinking, with the calls as text."""

    def read(self, delta: Delta) -> Sequence[Piece]:
        """The pieces that this delta completes."""
        if self._first is None:
            return self._read_calls([Text(delta.text)] if delta.text else [])
        thought = self._first.thinking
        pieces = self._first.feed(delta.text)
        if thought or self._first.thinking:
            self.reasoning_tokens += delta.tokens
        return self._read_calls(pieces)

    def close(self) -> Sequence[Piece]:
        """What was held back when the choice ended."""
        pieces = self._read_calls(self._first.close() if self._first else [])
        return [*pieces, *self._with_inputs(self._calls.close())] if self._calls else pieces

    def _read_calls(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        self.raw = "".join(map(_as_written, pieces))
        if self._calls is not None:
            found: list[Piece] = []
            for piece in pieces:
                found += self._calls.feed(piece.text) if isinstance(piece, Text) else [piece]
            pieces = found
        self.called = self.called or any(isinstance(piece, CallStart) for piece in pieces)
        return self._with_inputs(pieces)

    def _with_inputs(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """The same, where the arguments of custom tools are the text that is in them."""
        return [found for piece in pieces if (found := self._with_input(piece)) is not None] if self._custom else pieces

    def _with_input(self, piece: Piece) -> Piece | None:
        if isinstance(piece, CallStart) and piece.name in self._custom:
            self._inputs[piece.index] = InputReader()
            return replace(piece, is_custom=True)
        if isinstance(piece, CallArguments) and piece.index in self._inputs:
            text = self._inputs[piece.index].feed(piece.text)
            return CallInput(piece.index, text) if text else None
        return piece


def _as_written(piece: Piece) -> str:
    """A piece as text for clients that read calls as text."""
    if isinstance(piece, CallStart):
        return f"{piece.name}\n"
    return piece.text if isinstance(piece, Text | CallArguments) else ""
