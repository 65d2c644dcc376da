"""Mistral's calls: the special token ``[TOOL_CALLS]``, then a list of objects with name and arguments.

Since version 11 of its tokenizer each call is ``[TOOL_CALLS]``, the name, ``[ARGS]`` and the arguments.
"""

from __future__ import annotations

from quintet_chat.tools.json_calls import JsonCalls
from quintet_chat.tools.scan import NAME

MISTRAL = JsonCalls(
    name="mistral",
    begin=f'{{"name": "{NAME}", "arguments": ',
    end="}",
    opening=["{", '"name"', ":", '"', NAME, '"', ",", '"arguments"', ":"],
    closing=["}"],
    trigger="[TOOL_CALLS]",
    separator=", ",
    list_open="[TOOL_CALLS] [",
    list_close="]",
    marks=["[TOOL_CALLS]"],
)

MISTRAL_ARGS = JsonCalls(
    name="mistral_args",
    begin=f"[TOOL_CALLS]{NAME}[ARGS]",
    end="",
    opening=["[TOOL_CALLS]", NAME, "[ARGS]"],
    closing=[],
    trigger="[TOOL_CALLS]",
    separator="",
    marks=["[TOOL_CALLS]", "[ARGS]"],
)
