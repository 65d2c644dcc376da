"""Thinking between two tags at the beginning of an answer, split from the answer itself."""

from __future__ import annotations

from enum import Enum, auto
from typing import Literal, NamedTuple

from quintet_chat.tools.base import Piece, Reasoning, Stepping, Text
from quintet_chat.tools.scan import overlap


class Tags(NamedTuple):
    opening: str
    closing: str
    answer: tuple[str, str] | None = None
    """The tags that some models put around their answer as well."""
    channel: str = ""
    """The special token that ``opening`` begins with, where that is more than one token."""

    @property
    def around(self) -> tuple[str, str]:
        """The tags of the thinking."""
        return self.opening, self.closing

    @property
    def marks(self) -> list[str]:
        """What may be special tokens, which then must stay in the text."""
        return [each for each in (*self.around, *(self.answer or ()), self.channel) if each]


TAGS: dict[str, Tags] = {
    "think": Tags("<think>", "</think>"),
    "mistral": Tags("[THINK]", "[/THINK]"),
    "hunyuan": Tags("<think>", "</think>", ("<answer>", "</answer>")),
    "granite": Tags("<think>", "</think>", ("<response>", "</response>")),
    "granite_3_2": Tags("Here is my thought process:", "Here is my response:"),
    "seed_oss": Tags("<seed:think>", "</seed:think>"),
    "kimi": Tags("◁think▷", "◁/think▷"),
    "apertus": Tags("<|inner_prefix|>", "<|inner_suffix|>"),
    "gemma4": Tags("<|channel>thought", "<channel|>", channel="<|channel>"),
    "cohere": Tags("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    "exaone_deep": Tags("<thought>", "</thought>"),
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
    BEFORE_ANSWER = auto()
    WRAPPED = auto()
    BEHIND = auto()
    """Behind the tag that ends an answer; what more there is may be calls."""
    ANSWER = auto()


class ThinkingParser(Stepping):
    """``inside`` says that the prompt has opened the tag already.

    Whitespace around the thoughts is dropped, and around an answer that has tags of its own.
    """

    def __init__(self, tags: Tags, inside: bool) -> None:
        super().__init__()
        self._tags = tags
        self._inside = inside
        self._state = _State.OPENING
        self._is_blank = True
        """Whether nothing has been found yet of what is between two tags."""

    @property
    def thinking(self) -> bool:
        return self._state is _State.THINKING or (self._inside and self._state is _State.OPENING)

    def close(self) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        if self.thinking or self._state in (_State.WRAPPED, _State.BEHIND):
            rest = rest.strip() if self._is_blank else rest.rstrip()
        return [Reasoning(rest) if self.thinking else Text(rest)] if rest else []

    def _step(self, pieces: list[Piece]) -> bool:
        """Do the next thing that the buffer allows; False when more text is needed."""
        if self._state is _State.OPENING:
            return self._begin(self._tags.opening, _State.THINKING, otherwise=self._without_opening)
        if self._state is _State.THINKING:
            return self._between(pieces, Reasoning, self._tags.closing)
        if self._state is _State.GAP:
            self._buffer = self._buffer.lstrip()
            self._state = _State.BEFORE_ANSWER if self._buffer else _State.GAP
            return bool(self._buffer)
        if self._tags.answer is not None and self._state is _State.BEFORE_ANSWER:
            return self._begin(self._tags.answer[0], _State.WRAPPED, otherwise=_State.ANSWER)
        if self._tags.answer is not None and self._state is _State.WRAPPED:
            return self._between(pieces, Text, self._tags.answer[1])
        end = len(self._buffer.rstrip()) if self._state is _State.BEHIND else len(self._buffer)
        if end:
            pieces.append(Text(self._buffer[:end]))
        self._buffer = self._buffer[end:]
        return False

    @property
    def _without_opening(self) -> _State:
        return _State.THINKING if self._inside else _State.BEFORE_ANSWER

    def _begin(self, tag: str, inside: _State, otherwise: _State) -> bool:
        """Skip the tag that may be next. Some models write it after a prompt that ends with it."""
        stripped = self._buffer.lstrip()
        if stripped.startswith(tag):
            self._state, self._buffer = inside, stripped[len(tag) :]
        elif tag.startswith(stripped):
            return False
        else:
            self._state = otherwise
        return True

    def _between(self, pieces: list[Piece], kind: type[Reasoning] | type[Text], closing: str) -> bool:
        if self._is_blank:
            self._buffer = self._buffer.lstrip()
        found = self._buffer.find(closing)
        end = found if found >= 0 else len(self._buffer) - overlap(self._buffer, closing)
        text = self._buffer[:end].rstrip()
        if text:
            pieces.append(kind(text))
            self._is_blank = False
        if found < 0:
            self._buffer = self._buffer[len(text) :]
            return False
        self._buffer = self._buffer[found + len(closing) :]
        self._state = _State.GAP if kind is Reasoning else _State.BEHIND
        self._is_blank = True
        return True
