"""Thinking between two tags at the beginning of an answer, split from the answer itself."""

from __future__ import annotations

from enum import Enum, auto
from typing import Literal, NamedTuple

from quintet_chat.tools.base import Piece, Reasoning, Stepping, Text
from quintet_chat.tools.scan import overlap


class Tags(NamedTuple):
    opening: str
    closing: str


TAGS: dict[str, Tags] = {
    "think": Tags("<think>", "</think>"),
    "mistral": Tags("[THINK]", "[/THINK]"),
}
"""Styles of thinking by the name that models.yml and the worker's info use; harmony's is a format of its own."""


def state_after(prompt: str, tags: tuple[str, str] | None) -> Literal["open", "closed"] | None:
    """Whether the prompt has begun the model's thinking, or skipped it; None: the model may do as it likes."""
    end = prompt.rstrip()
    if tags is None or not end.endswith(tags):
        return None
    return "open" if end.endswith(tags[0]) else "closed"


class _State(Enum):
    OPENING = auto()
    THINKING = auto()
    GAP = auto()
    ANSWER = auto()


class ThinkingParser(Stepping):
    """``inside`` says that the prompt has opened the tag already. Whitespace around the thoughts is dropped."""

    def __init__(self, tags: Tags, inside: bool) -> None:
        super().__init__()
        self._tags = tags
        self._inside = inside
        self._state = _State.OPENING
        self._has_thought = False

    @property
    def thinking(self) -> bool:
        return self._state is _State.THINKING or (self._inside and self._state is _State.OPENING)

    def close(self) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        if self.thinking:
            rest = rest.rstrip() if self._has_thought else rest.strip()
            return [Reasoning(rest)] if rest else []
        return [Text(rest)] if rest and self._state is _State.OPENING else []

    def _step(self, pieces: list[Piece]) -> bool:
        """Do the next thing that the buffer allows; False when more text is needed."""
        if self._state is _State.OPENING:
            return self._open()
        if self._state is _State.THINKING:
            return self._think(pieces)
        if self._state is _State.GAP:
            self._buffer = self._buffer.lstrip()
            self._state = _State.ANSWER if self._buffer else _State.GAP
            return bool(self._buffer)
        if self._buffer:
            pieces.append(Text(self._buffer))
            self._buffer = ""
        return False

    def _open(self) -> bool:
        """Skip the opening tag, which some models also write after a prompt that ends with it."""
        stripped = self._buffer.lstrip()
        if stripped.startswith(self._tags.opening):
            self._state, self._buffer = _State.THINKING, stripped[len(self._tags.opening) :]
        elif self._tags.opening.startswith(stripped):
            return False
        else:
            self._state = _State.THINKING if self._inside else _State.ANSWER
        return True

    def _think(self, pieces: list[Piece]) -> bool:
        if not self._has_thought:
            self._buffer = self._buffer.lstrip()
        found = self._buffer.find(self._tags.closing)
        end = found if found >= 0 else len(self._buffer) - overlap(self._buffer, self._tags.closing)
        thought = self._buffer[:end].rstrip()
        if thought:
            pieces.append(Reasoning(thought))
            self._has_thought = True
        if found < 0:
            self._buffer = self._buffer[len(thought) :]
            return False
        self._buffer = self._buffer[found + len(self._tags.closing) :]
        self._state = _State.GAP
        return True
