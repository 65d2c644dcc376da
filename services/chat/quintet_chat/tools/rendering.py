"""Tools in words, for chat templates that know none: definitions, calls and results become text of the messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from quintet_chat.tools.base import Family

Message = dict[str, Any]


def as_plain_messages(messages: Sequence[Message], tools: Sequence[dict[str, Any]], family: Family) -> list[Message]:
    """``messages`` with plain roles and texts only, the ``tools`` described in the system message."""
    plain = [_plain(message, family) for message in messages]
    if not tools:
        return plain
    definitions = _definitions(tools, family)
    if plain and plain[0]["role"] == "system":
        first = plain[0] | {"content": f"{plain[0]['content']}\n\n{definitions}"}
        return [first, *plain[1:]]
    return [{"role": "system", "content": definitions}, *plain]


def _plain(message: Message, family: Family) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if calls := message.get("tool_calls"):
        texts = [message["content"]] if message["content"] else []
        texts += [family.call_text(call["function"]["name"], _json(call["function"]["arguments"])) for call in calls]
        return {"role": message["role"], "content": "\n".join(texts)}
    return message


def _definitions(tools: Sequence[dict[str, Any]], family: Family) -> str:
    lines = "\n".join(_json(tool) for tool in tools)
    call = family.call_text("NAME", "ARGUMENTS")
    return (
        "You can call functions to help the user. The functions are described here, one per line:\n"
        f"<tools>\n{lines}\n</tools>\n"
        "To call one, answer with its name and a JSON object of its arguments in exactly this form:\n"
        f"{call}"
    )


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
