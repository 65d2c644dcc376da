"""Tools in words, for chat templates that know none: definitions, calls and results become text of the messages.

Models with such templates have never learnt to call, so the words are those with which a small model does best: the
shorter where the grammar forces a call anyway, and the question once more after a result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from quintet_chat.tools.base import Family

Message = dict[str, Any]


def as_plain_messages(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], family: Family, *, forced: bool
) -> list[Message]:
    """``messages`` with plain roles and texts only, the ``tools`` described in the system message.

    ``forced`` says that the answer can be nothing but a call.
    """
    plain = [_plain(message, family) for message in messages]
    if messages[-1]["role"] == "tool":
        _ask_again(plain, messages)
    if not tools:
        return plain
    definitions = _for_a_call(tools) if forced else _for_a_choice(tools, family)
    if plain[0]["role"] == "system":
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


def _ask_again(plain: list[Message], messages: Sequence[Message]) -> None:
    """Put the user's last question after the result that the conversation ends with."""
    question = next((each["content"] for each in reversed(messages) if each["role"] == "user"), None)
    if isinstance(question, str):
        again = f"\nUsing this result, answer in one sentence: {question}"
        plain[-1] = plain[-1] | {"content": plain[-1]["content"] + again}


def _for_a_call(tools: Sequence[dict[str, Any]]) -> str:
    lines = "\n".join(_json(tool["function"]) for tool in tools)
    return f"Extract the arguments of the function call from the user's words. Functions:\n{lines}"


def _for_a_choice(tools: Sequence[dict[str, Any]], family: Family) -> str:
    lines = "\n".join(_json(tool) for tool in tools)
    return (
        "You can call functions to help the user. The functions are described here, one per line:\n"
        f"<tools>\n{lines}\n</tools>\n"
        "To call one, answer with its name and a JSON object of its arguments in exactly this form:\n"
        f"{family.call_text('NAME', 'ARGUMENTS')}"
    )


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
