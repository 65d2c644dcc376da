"""Hermes calls, as Qwen writes them: ``<tool_call>``, an object with name and arguments, ``</tool_call>``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quintet_chat.tools.base import Parser, PatternParser, ToolFunction, tag

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_OPENING = re.compile(r'<tool_call>\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_CLOSING = re.compile(r"\s*\}\s*</tool_call>")


class Hermes:
    name = "hermes"
    special_tokens = False

    def calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        return {
            "type": "tags_with_separator",
            "tags": [_tag(function) for function in functions],
            "separator": "\n",
            "at_least_one": True,
            "stop_after_first": not several,
        }

    def text_or_calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        tags = [_tag(function) for function in functions]
        return {"type": "triggered_tags", "triggers": [_OPEN], "tags": tags, "stop_after_first": not several}

    def parser(self, functions: Sequence[ToolFunction]) -> Parser:
        del functions  # the format says itself where a call begins
        return PatternParser(_OPENING, [_OPEN], _CLOSING, _CLOSE)

    def call_text(self, name: str, arguments: str) -> str:
        return f'{_OPEN}\n{{"name": "{name}", "arguments": {arguments}}}\n{_CLOSE}'


def _tag(function: ToolFunction) -> dict[str, Any]:
    return tag(f'{_OPEN}\n{{"name": "{function.name}", "arguments": ', function, f"}}\n{_CLOSE}")
