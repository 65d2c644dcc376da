"""Calls whose arguments are a JSON object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from quintet_chat.tools.base import ToolFunction, arguments_format
from quintet_chat.tools.calls import ArgumentsReader, Calls
from quintet_chat.tools.scan import JsonObject


@dataclass(frozen=True, kw_only=True)
class JsonCalls(Calls):
    before: ClassVar[str] = "{"

    def arguments(self, function: ToolFunction) -> dict[str, Any]:
        return arguments_format(function)

    def reader(self, function: ToolFunction | None) -> ArgumentsReader:
        del function  # the text is JSON whatever the schema
        return _JsonArguments()

    def arguments_text(self, arguments: str) -> str:
        return arguments


class _JsonArguments:
    def __init__(self) -> None:
        self._object = JsonObject()

    def feed(self, text: str) -> tuple[str, str | None]:
        end = self._object.feed(text)
        return (text, None) if end is None else (text[:end], text[end:])
