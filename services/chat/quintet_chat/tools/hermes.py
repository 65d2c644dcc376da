"""Hermes calls, as Qwen writes them: ``<tool_call>``, an object with name and arguments, ``</tool_call>``."""

from __future__ import annotations

from quintet_chat.tools.json_calls import JsonCalls
from quintet_chat.tools.scan import NAME

HERMES = JsonCalls(
    name="hermes",
    begin=f'<tool_call>\n{{"name": "{NAME}", "arguments": ',
    end="}\n</tool_call>",
    opening=["<tool_call>", "{", '"name"', ":", '"', NAME, '"', ",", '"arguments"', ":"],
    closing=["}", "</tool_call>"],
    trigger="<tool_call>",
    separator="\n",
    marks=["<tool_call>", "</tool_call>"],
)
