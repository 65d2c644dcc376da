"""Parameters in XML, as they come, read as the JSON object that they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quintet_chat.tools.scan import JsonBeforeMark, overlap
from quintet_chat.tools.xml_values import NULL, Kind


@dataclass(frozen=True, kw_only=True)
class Markup:
    """A parameter is ``opening``, its key, ``key_end``, its value, ``closing``."""

    opening: str
    key_end: str
    value: str = ""
    """A mark of its own before the value."""
    closing: str
    frame: str = ""
    """Around the value, without being a part of it."""
    gap: str = "\n"
    """Behind a mark that another one follows."""

    def begin(self, key: str) -> str:
        """All before the value."""
        mark = f"{self.gap}{self.value}" if self.value else ""
        return f"{self.opening}{key}{self.key_end}{mark}{self.frame}"

    @property
    def end(self) -> str:
        return f"{self.frame}{self.closing}{self.gap}"


class XmlArguments:
    """An ArgumentsReader. ``kinds`` says how each parameter's value is written."""

    def __init__(self, markup: Markup, kinds: Mapping[str, Kind]) -> None:
        self._markup = markup
        self._kinds = kinds
        self._step: Callable[[], bool] = self._between
        """Does the next thing that the buffer allows; False when more text is needed."""
        self._buffer = ""
        self._out: list[str] = []
        self._has_begun = False
        self._has_ended = False

    def feed(self, text: str) -> tuple[str, str | None]:
        self._buffer += text
        while self._step():
            pass
        out, self._out = "".join(self._out), []
        return out, self._buffer if self._has_ended else None

    def _between(self) -> bool:
        """Before a parameter, or the end."""
        markup, text = self._markup, self._buffer.lstrip()
        if markup.opening.startswith(text):
            return False
        if not text.startswith(markup.opening):
            return self._end()
        key, found, rest = text[len(markup.opening) :].partition(markup.key_end)
        if markup.value:
            rest = rest.lstrip()
            if found and not markup.value.startswith(rest[: len(markup.value)]):
                return self._end()
        if not found or len(rest) < len(markup.value):
            return False
        self._buffer = rest[len(markup.value) :]
        self._out.append(f"{', ' if self._has_begun else '{'}{json.dumps(key.strip(), ensure_ascii=False)}: ")
        self._has_begun = True
        self._begin(self._kinds.get(key.strip(), Kind.JSON))
        return True

    def _end(self) -> bool:
        self._out.append("}" if self._has_begun else "{}")
        self._has_ended = True
        return False

    def _begin(self, kind: Kind) -> None:
        if kind is Kind.JSON:
            self._scan, self._space, self._is_blank = JsonBeforeMark(), "", True
            self._step = self._json
            return
        self._is_quoted = kind is Kind.TEXT
        if self._is_quoted:
            self._out.append('"')
        self._step = self._frame

    def _frame(self) -> bool:
        if self._markup.frame.startswith(self._buffer) and self._buffer != self._markup.frame:
            return False
        self._buffer = self._buffer.removeprefix(self._markup.frame)
        self._step = self._text
        return True

    def _text(self) -> bool:
        closing, frame = self._markup.closing, self._markup.frame
        text, found, rest = self._buffer.partition(closing)
        if not found:
            held = max(overlap(text, f"{frame}{closing}"), overlap(text, closing))
            text, rest = text[: len(text) - held], text[len(text) - held :]
            if not self._is_quoted and NULL.startswith(text):
                return False
        text = text.removesuffix(frame) if found else text
        if found and not self._is_quoted and text == NULL:
            self._out.append(NULL)
        else:
            quoted = json.dumps(text, ensure_ascii=False)
            self._out.append(quoted[self._is_quoted : len(quoted) - (not found)])
            self._is_quoted = True
        self._buffer = rest
        self._step = self._between if found else self._text
        return bool(found)

    def _json(self) -> bool:
        end = self._scan.feed(self._buffer)
        text = self._space + self._buffer[:end]
        body = (text.lstrip() if self._is_blank else text).rstrip()
        if body:
            self._out.append(body)
            self._is_blank = False
        self._space = "" if self._is_blank else text[len(text.rstrip()) :]
        self._buffer = "" if end is None else self._buffer[end:]
        if end is None:
            return False
        self._step = self._closing
        return True

    def _closing(self) -> bool:
        _, found, rest = self._buffer.partition(self._markup.closing)
        if not found:
            return False
        self._buffer = rest
        self._step = self._between
        return True
