"""The conversation of a request, checked, with its pictures fetched, as chat templates take it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from quintet_common.dialect import Dialect
from quintet_common.errors import bad_request, missing_field
from quintet_common.media import picture_from_url

from quintet_chat.api import zlai
from quintet_chat.api.chat_request import FunctionCall, Message, ToolCall
from quintet_chat.tools.custom import arguments_of

MAX_PICTURES = 16
"""Pictures of one request."""

_REFUSED_PARTS = {
    "input_audio": "the models of this service do not listen",
    "file": "files are not read here; send pictures as image_url",
}


_REFUSED_FIELDS = {
    "audio": "what was said is not kept here; send its words as content",
    "function_call": "it was replaced by tool_calls; please use that",
}


@dataclass
class Conversation:
    """``messages`` for the worker; a picture is the part ``{"type": "image", "image": INDEX}``."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)


@dataclass
class _PictureUrl:
    """A picture that is still to be fetched, and the request field that names it."""

    url: str
    param: str


async def read_conversation(
    messages: Sequence[Message], dialect: Dialect, no_pictures: str | None, paths: Sequence[str] | None = None
) -> Conversation:
    """Raises ApiError 400 that names the field. ``no_pictures`` says why the model takes none, if so.

    ``paths`` are the messages' names in the request, ``messages[0]`` and so on unless they are given.
    """
    is_zlai = dialect is Dialect.ZLAI
    pictures: list[_PictureUrl] = []
    conversation = Conversation()
    answered = _Calls()
    for index, message in enumerate(zlai.with_roles(messages) if is_zlai else messages):
        path = paths[index] if paths else f"messages[{index}]"
        answered.check(message, path, strict=not is_zlai)
        conversation.messages.append(_as_template_message(message, path, pictures))
    if pictures and no_pictures:
        raise bad_request(f"{pictures[0].param}: {no_pictures}", pictures[0].param, "unsupported_content")
    if len(pictures) > MAX_PICTURES:
        text = f"The request has {len(pictures)} pictures; at most {MAX_PICTURES} are read."
        raise bad_request(text, pictures[MAX_PICTURES].param, "too_many_pictures")
    fetched = [picture_from_url(each.url, each.param, zlai=is_zlai) for each in pictures]
    conversation.pictures = [picture.data for picture in await asyncio.gather(*fetched)]
    return conversation


class _Calls:
    """The calls of the conversation that were made and may be answered."""

    def __init__(self) -> None:
        self._made: set[str] = set()

    def check(self, message: Message, path: str, *, strict: bool) -> None:
        """A message needs a role, and a tool's answer the call that it answers."""
        if message.role is None:
            raise missing_field(f"{path}.role")
        for name, reason in _REFUSED_FIELDS.items():
            if getattr(message, name) is not None:
                raise bad_request(f"{path}.{name}: {reason}.", f"{path}.{name}", "unsupported_content")
        if message.role == "function":
            raise bad_request(f"{path}.role: 'function' was replaced by 'tool'.", f"{path}.role", "invalid_value")
        self._made.update(call.id for call in message.tool_calls or [])
        if message.role == "tool" and strict:
            if message.tool_call_id is None:
                raise missing_field(f"{path}.tool_call_id")
            if message.tool_call_id not in self._made:
                text = f"{path}.tool_call_id: no message before has a tool call of this id."
                raise bad_request(text, f"{path}.tool_call_id", "invalid_value")


def _as_template_message(message: Message, path: str, pictures: list[_PictureUrl]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    result: dict[str, Any] = {"role": role, "content": _content(message, path, pictures)}
    if message.name:
        result["name"] = message.name
    if thought := message.reasoning_content or message.reasoning:
        result |= {"reasoning_content": thought, "thinking": thought}  # templates know one name or the other
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        result["tool_calls"] = [_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)]
    return result


def _content(message: Message, path: str, pictures: list[_PictureUrl]) -> str | list[dict[str, Any]]:
    """Text; or the parts in their order, when there are pictures among them."""
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role != "assistant":
            raise missing_field(f"{path}.content")
        return message.refusal or ""
    before = len(pictures)
    parts = [_part(part, f"{path}.content[{i}]", message, pictures) for i, part in enumerate(message.content)]
    if len(pictures) > before:
        return parts
    return "\n".join(part["text"] for part in parts)


def _part(part: dict[str, Any], path: str, message: Message, pictures: list[_PictureUrl]) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        return {"type": "text", "text": _text(part.get(kind), f"{path}.{kind}")}
    if kind == "image_url":
        if message.role != "user":
            raise bad_request(f"{path}: pictures belong in the user's messages.", path, "invalid_value")
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        pictures.append(_PictureUrl(_text(url, f"{path}.image_url"), f"{path}.image_url"))
        return {"type": "image", "image": len(pictures) - 1}
    if isinstance(kind, str) and kind in _REFUSED_PARTS:
        raise bad_request(f"{path}: {_REFUSED_PARTS[kind]}.", f"{path}.type", "unsupported_content")
    raise bad_request(f"{path}.type: expected 'text' or 'image_url'.", f"{path}.type", "invalid_value")


def _text(value: Any, path: str) -> str:
    if value is None:
        raise missing_field(path)
    if not isinstance(value, str):
        raise bad_request(f"Invalid value for {path}: expected a string.", path, "invalid_value")
    return value


def _call(call: ToolCall, path: str) -> dict[str, Any]:
    """A call of the history; templates expect the arguments as an object where they are one."""
    if call.type == "custom" and call.custom is not None:
        call = ToolCall(
            id=call.id, function=FunctionCall(name=call.custom.name, arguments=arguments_of(call.custom.input))
        )
    if call.type != "function" or call.function is None:
        raise bad_request(
            f"{path}: only calls of functions and custom tools are known here.", f"{path}.type", "unsupported_content"
        )
    arguments = _arguments(call.function.arguments, f"{path}.function.arguments")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _arguments(written: str, path: str) -> str | dict[str, Any]:
    """An object where they are one that the worker can be sent, which has no numbers of more than 64 bits."""
    try:
        parsed = json.loads(written)
        msgspec.msgpack.encode(parsed)
    except UnicodeEncodeError:
        message = f"{path}: half a character is in it: a lone surrogate is not text."
        raise bad_request(message, path, "invalid_value") from None
    except (ValueError, OverflowError, RecursionError):
        return written
    return parsed if isinstance(parsed, dict) else written
