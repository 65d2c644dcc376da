"""GLM-4's calls: the name on a line of its own, then the arguments as an object. One call in an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quintet_chat.tools.base import Parser, PatternParser, ToolFunction, tag

_CLOSING = re.compile("")


class Glm4:
    name = "glm4"
    special_tokens = False

    def calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        del several  # the format has no way to write a second call
        return {"type": "or", "elements": [_tag(function) for function in functions]}

    def text_or_calls(self, functions: Sequence[ToolFunction], several: bool) -> dict[str, Any]:
        del several
        triggers = [f"{function.name}\n" for function in functions]
        tags = [_tag(function) for function in functions]
        return {"type": "triggered_tags", "triggers": triggers, "tags": tags, "stop_after_first": True}

    def parser(self, functions: Sequence[ToolFunction]) -> Parser:
        longest_first = sorted((re.escape(function.name) for function in functions), key=len, reverse=True)
        opening = re.compile(rf"(?P<name>{'|'.join(longest_first)})\n\s*(?=\{{)")
        return PatternParser(opening, [f"{function.name}\n" for function in functions], _CLOSING)

    def call_text(self, name: str, arguments: str) -> str:
        return f"{name}\n{arguments}"


def _tag(function: ToolFunction) -> dict[str, Any]:
    return tag(f"{function.name}\n", function, "")
