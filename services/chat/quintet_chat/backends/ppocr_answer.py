"""What ``ppocr`` says: its few sentences in the user's language, its tokens, and where an answer must end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from quintet_common.worker.host import Emit

from quintet_chat.protocol import Delta, Finished

_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_TOKEN = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_\u3040-\ud7af]+|\S)")


@dataclass(frozen=True)
class Words:
    label: str
    """Above each of several pictures; ``{}`` is its number."""
    nothing: str
    help: str

    @classmethod
    def of(cls, text: str) -> Self:
        """In Chinese when the user writes Chinese, else in English."""
        if _CJK.search(text):
            return cls(
                label="图 {}：",
                nothing="图中没有读到文字。",
                help="我读取图片中的文字。请随消息发送一张或几张图片。我只读文字，不会推理。",
            )
        return cls(
            label="Picture {}:",
            nothing="No text was found in the picture.",
            help="I read the text in pictures. Send one or several with your message. I read only; I do not reason.",
        )


def count_tokens(text: str) -> int:
    """CJK characters, words and marks, each as one token."""
    return sum(1 for _ in _TOKEN.finditer(text))


class Answer:
    """An answer of lines, cut where the limit of tokens or a stop string says."""

    def __init__(self, emit: Emit, max_tokens: int | None, stop: list[str]) -> None:
        self._emit = emit
        self._left = max_tokens
        self._stop = stop
        self._held = ""
        self._held_tokens = 0
        self._begun = False
        self.ended = False

    def say(self, line: str) -> None:
        """Add a line. What may be the beginning of a stop string waits for the next one."""
        if self.ended:
            return
        tokens = count_tokens(line)
        is_cut = self._left is not None and tokens > self._left
        if is_cut and self._left is not None:
            line, tokens = _first_tokens(line, self._left), self._left
        if self._left is not None:
            self._left -= tokens
        text = self._held + ("\n" if self._begun else "") + line
        self._begun = True
        self._held, self._held_tokens = "", tokens + self._held_tokens
        found = [position for each in self._stop if (position := text.find(each)) >= 0]
        if found:
            self._send(text[: min(found)])
            self._end("stop")
        elif is_cut:
            self._send(text)
            self._end("length")
        else:
            keep = self._possible_stop(text)
            self._send(text[:keep])
            self._held = text[keep:]

    def finish(self) -> None:
        """All has been said."""
        if not self.ended:
            if self._held:
                self._send(self._held)
            self._end("stop")

    def _send(self, text: str) -> None:
        if text or self._held_tokens:
            self._emit(Delta(0, text, self._held_tokens))
        self._held_tokens = 0

    def _end(self, reason: str) -> None:
        self.ended = True
        self._emit(Finished(0, "stop" if reason == "stop" else "length"))

    def _possible_stop(self, text: str) -> int:
        """Where the longest end of ``text`` begins that a stop string, or the line break before one, begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        for start in range(max(0, len(text) - longest), len(text)):
            if any(each.startswith(text[start:]) for each in self._stop):
                return start
        return len(text)


def _first_tokens(text: str, count: int) -> str:
    end = 0
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number == count:
            break
        end = match.end()
    return text[:end] if count else ""
