"""DeepSeek's calls: special tokens around each call and around the list of them.

V3 and R1 write the arguments as a block of code; V3.1 writes them bare.
"""

from __future__ import annotations

from quintet_chat.tools.json_calls import JsonCalls
from quintet_chat.tools.scan import NAME

_LIST, _LIST_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_MARKS = [_LIST, _LIST_END, _CALL, _SEPARATOR, _CALL_END]

DEEPSEEK = JsonCalls(
    name="deepseek",
    begin=f"{_CALL}function{_SEPARATOR}{NAME}\n```json\n",
    end=f"\n```{_CALL_END}",
    opening=[_CALL, "function", _SEPARATOR, NAME, "```json"],
    closing=["```", _CALL_END],
    trigger=_LIST,
    separator="\n",
    list_open=_LIST,
    list_close=_LIST_END,
    marks=_MARKS,
)

DEEPSEEK_V31 = JsonCalls(
    name="deepseek_v31",
    begin=f"{_CALL}{NAME}{_SEPARATOR}",
    end=_CALL_END,
    opening=[_CALL, NAME, _SEPARATOR],
    closing=[_CALL_END],
    trigger=_LIST,
    separator="",
    list_open=_LIST,
    list_close=_LIST_END,
    marks=_MARKS,
)
