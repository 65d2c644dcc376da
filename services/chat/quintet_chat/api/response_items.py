"""The input of a response request as the messages of a conversation."""

from __future__ import annotations

from typing import Any

from quintet_common.errors import bad_request, missing_field

from quintet_chat.api.chat_request import CustomCall, FunctionCall, Message, ToolCall

_ROLES = ("developer", "system", "user", "assistant")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_REFUSED = {
    "input_file": "files are not read here; send pictures as input_image",
    "input_audio": "the models of this service do not listen",
}


def messages_of(items: str | list[dict[str, Any]]) -> tuple[list[Message], list[str]]:
    """The messages, and for each the path of its item. Raises ApiError 400 that names the field."""
    if isinstance(items, str):
        return [Message(role="user", content=items)], ["input"]
    reader = _Reader()
    for index, item in enumerate(items):
        reader.read(item, f"input[{index}]")
    if not reader.messages:
        raise bad_request("input: there is nothing but reasoning to answer.", "input", "invalid_value")
    return reader.messages, reader.paths


class _Reader:
    """Thoughts, words and calls of the assistant that follow one another become one message."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.paths: list[str] = []
        self._thoughts: list[str] = []

    def read(self, item: dict[str, Any], path: str) -> None:
        kind = item.get("type", "message")
        if kind == "message":
            self._message(item, path)
        elif kind == "function_call":
            call = FunctionCall(name=_string(item, "name", path), arguments=_string(item, "arguments", path))
            self._call(ToolCall(id=_string(item, "call_id", path), function=call), path)
        elif kind == "custom_tool_call":
            custom = CustomCall(name=_string(item, "name", path), input=_string(item, "input", path))
            self._call(ToolCall(id=_string(item, "call_id", path), type="custom", custom=custom), path)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            content = _content(item, "output", path)
            self._add(Message(role="tool", content=content, tool_call_id=_string(item, "call_id", path)), path)
        elif kind == "reasoning":
            self._thoughts.append(_thoughts(item, path))
        else:
            text = f"{path}.type: {str(kind)[:40]!r} is not read here; items are messages, calls of functions "
            raise bad_request(
                text + "and custom tools, their outputs and reasoning.", f"{path}.type", "unsupported_content"
            )

    def _message(self, item: dict[str, Any], path: str) -> None:
        role = item.get("role")
        if role is None:
            raise missing_field(f"{path}.role")
        if role not in _ROLES:
            raise bad_request(f"{path}.role: expected one of {', '.join(_ROLES)}.", f"{path}.role", "invalid_value")
        message = Message(role=role, content=_content(item, "content", path))
        if role == "assistant":
            message.reasoning_content = self._take_thoughts()
        self._add(message, path)

    def _call(self, call: ToolCall, path: str) -> None:
        message = self._assistant(path)
        message.tool_calls = [*(message.tool_calls or []), call]

    def _assistant(self, path: str) -> Message:
        """The assistant's message that a call belongs to."""
        if any(self._thoughts) or not self.messages or self.messages[-1].role != "assistant":
            self._add(Message(role="assistant", reasoning_content=self._take_thoughts()), path)
        return self.messages[-1]

    def _add(self, message: Message, path: str) -> None:
        self.messages.append(message)
        self.paths.append(path)

    def _take_thoughts(self) -> str | None:
        thoughts, self._thoughts = "".join(self._thoughts), []
        return thoughts or None


def _content(item: dict[str, Any], field: str, path: str) -> str | list[dict[str, Any]]:
    """Text, or parts as chat messages have them, in the same order."""
    content = item.get(field)
    if content is None:
        raise missing_field(f"{path}.{field}")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{path}.{field}: expected a string or a list.", f"{path}.{field}", "invalid_value")
    return [_part(part, f"{path}.{field}[{index}]") for index, part in enumerate(content)]


def _part(part: Any, path: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _TEXTS:
        field = _TEXTS[kind]
        return {"type": field, field: _string(part, field, path)}
    if kind == "input_image":
        if part.get("file_id") is not None:
            raise bad_request(f"{path}.file_id: no files are stored here.", f"{path}.file_id", "unsupported_content")
        return {"type": "image_url", "image_url": {"url": _string(part, "image_url", path)}}
    if isinstance(kind, str) and kind in _REFUSED:
        raise bad_request(f"{path}: {_REFUSED[kind]}.", f"{path}.type", "unsupported_content")
    raise bad_request(f"{path}.type: expected 'input_text' or 'input_image'.", f"{path}.type", "invalid_value")


def _thoughts(item: dict[str, Any], path: str) -> str:
    """Of a reasoning item: the thoughts themselves, else their summary."""
    field = "content" if item.get("content") else "summary"
    parts = item.get(field) or []
    if not isinstance(parts, list):
        raise bad_request(f"{path}.{field}: expected a list.", f"{path}.{field}", "invalid_value")
    return "".join(_thought(part, f"{path}.{field}[{index}]") for index, part in enumerate(parts))


def _thought(part: Any, path: str) -> str:
    if not isinstance(part, dict):
        raise bad_request(f"{path}: expected an object.", path, "invalid_value")
    return _string(part, "text", path)


def _string(item: dict[str, Any], field: str, path: str) -> str:
    if item.get(field) is None:
        raise missing_field(f"{path}.{field}")
    value = item[field]
    if not isinstance(value, str):
        raise bad_request(f"{path}.{field}: expected a string.", f"{path}.{field}", "invalid_value")
    return value
