"""Llama 3's calls: the whole answer is an object with the name and the parameters. One call in an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quintet_chat.tools.base import Parser, PatternParser, ToolFunction, tag

_OPENING = re.compile(r'\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"parameters"\s*:\s*(?=\{)')
_CLOSING = re.compile(r"\s*\}")
_MARKER = '{"name": "'


class Llama3:
    name = "llama3"
    special_tokens = False

    def calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        del several  # the format has no way to write a second call
        return {"type": "or", "elements": [_tag(function) for function in functions]}

    def text_or_calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        del several
        tags = [_tag(function) for function in functions]
        return {"type": "triggered_tags", "triggers": [_MARKER], "tags": tags, "stop_after_first": True}

    def parser(self, functions: Sequence[ToolFunction]) -> Parser:
        del functions  # the format says itself where a call begins
        return PatternParser(_OPENING, [_MARKER], _CLOSING)

    def call_text(self, name: str, arguments: str) -> str:
        return f'{_MARKER}{name}", "parameters": {arguments}}}'


def _tag(function: ToolFunction) -> dict[str, Any]:
    return tag(f'{_MARKER}{function.name}", "parameters": ', function, "}")
