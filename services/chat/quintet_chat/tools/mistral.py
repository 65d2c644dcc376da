"""Mistral's calls: the special token ``[TOOL_CALLS]``, then a list of objects with name and arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quintet_chat.tools.base import Parser, PatternParser, ToolFunction, tag

_MARKER = "[TOOL_CALLS]"
_OPENING = re.compile(
    r'(?:\[TOOL_CALLS\]\s*\[|\A,)\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"arguments"\s*:\s*(?=\{)'
)
_CLOSING = re.compile(r"\s*\}\s*(?:(?=,)|\])")


class Mistral:
    name = "mistral"
    special_tokens = True

    def calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        return {
            "type": "tag",
            "begin": f"{_MARKER} [",
            "content": {
                "type": "tags_with_separator",
                "tags": [tag(f'{{"name": "{each.name}", "arguments": ', each, "}") for each in functions],
                "separator": ", ",
                "at_least_one": True,
                "stop_after_first": not several,
            },
            "end": "]",
        }

    def text_or_calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        tags = [self.calls(functions, several)]
        return {"type": "triggered_tags", "triggers": [_MARKER], "tags": tags, "stop_after_first": True}

    def parser(self, functions: Sequence[ToolFunction]) -> Parser:
        del functions  # the format says itself where a call begins
        return PatternParser(_OPENING, [_MARKER, ', {"name": "'], _CLOSING)

    def call_text(self, name: str, arguments: str) -> str:
        return f'{_MARKER} [{{"name": "{name}", "arguments": {arguments}}}]'
