"""What vLLM's streams say, as events of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from quintet_common.errors import ApiError

from quintet_chat.protocol import Accepted, Delta, Event, Finished, Started, TokenLogprob

_MESSAGE = 1000
"""Characters of vLLM's own messages that are passed on."""


class _Logprobs(msgspec.Struct):
    """Of a chat chunk (``content``), or of a completion's (the rest)."""

    content: list[dict[str, Any]] | None = None
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Words(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int
    delta: _Words | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


async def events(
    lines: AsyncIterator[str], prompt_text: str | None = None, *, thinking: bool = False
) -> AsyncIterator[Event]:
    """The events of a stream whose ``lines`` these are. Raises ApiError when it says that the request failed.

    ``prompt_text`` and ``thinking`` are what is to be said in Accepted.
    """
    accepted = False
    async for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = _decode(line[6:])
        if chunk.error is not None:
            raise failure(500, chunk.error)
        if not accepted and chunk.usage is not None:
            accepted = True
            details = chunk.usage.prompt_tokens_details
            cached = details.cached_tokens if details is not None else None
            yield Accepted(chunk.usage.prompt_tokens, prompt_text, thinking=thinking)
            yield Started(0.0, cached or 0)
        for choice in chunk.choices:
            for event in _events(choice):
                yield event


def _events(choice: _Choice) -> Iterator[Event]:
    text = (choice.delta.content if choice.delta is not None else choice.text) or ""
    tokens = len(choice.token_ids or ())
    if text or tokens:
        logprobs = [] if choice.logprobs is None else list(_logprobs(choice.logprobs))
        yield Delta(choice.index, text, tokens, logprobs)
    if choice.finish_reason is not None:
        if choice.finish_reason not in ("stop", "length"):
            raise ApiError(503, "vLLM ended the request before its time.", retry_after=1)
        yield Finished(choice.index, "length" if choice.finish_reason == "length" else "stop")


def _logprobs(found: _Logprobs) -> Iterator[TokenLogprob]:
    for each in found.content or ():
        top = [(other["token"], _bytes(other), other["logprob"]) for other in each.get("top_logprobs") or ()]
        yield TokenLogprob(each["token"], _bytes(each), each["logprob"], top)
    for at, token in enumerate(found.tokens):
        others = (found.top_logprobs[at] if found.top_logprobs else None) or {}
        ranked = sorted(others.items(), key=lambda other: -other[1])
        top = [(text, list(text.encode()), logprob) for text, logprob in ranked]
        yield TokenLogprob(token, list(token.encode()), found.token_logprobs[at] or 0.0, top)


def _bytes(each: dict[str, Any]) -> list[int]:
    return each.get("bytes") or list(each["token"].encode())


def failure(status: int, error: dict[str, Any], given: str | None = None) -> ApiError:
    """An error of vLLM's as one of ours; ``given`` is what the request calls its prompt."""
    message = str(error.get("message") or "vLLM failed on this request.")[:_MESSAGE]
    param, code = error.get("param"), error.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        status, code = code, None
    if "maximum context length" in message:
        param, code = given, "context_length_exceeded"
    if "EngineCore" in message:
        return ApiError(503, "The model's engine failed and is started again.", code="worker_died", retry_after=5)
    if status in (401, 404):  # that is between us and vLLM
        status = 502
    return ApiError(
        status,
        message,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
    )
