"""Llama 3's calls: the whole answer is an object with the name and the parameters. One call in an answer."""

from __future__ import annotations

from quintet_chat.tools.json_calls import JsonCalls
from quintet_chat.tools.scan import NAME

LLAMA3 = JsonCalls(
    name="llama3",
    begin=f'{{"name": "{NAME}", "parameters": ',
    end="}",
    opening=["{", '"name"', ":", '"', NAME, '"', ",", '"parameters"', ":"],
    closing=["}"],
    trigger='{"name": "',
)
