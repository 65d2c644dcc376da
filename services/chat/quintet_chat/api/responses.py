"""``POST /responses``: OpenAI's newer shape of the same answers, without memory of earlier ones."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response as HttpResponse
from openai.types.responses import InputTokenCountResponse, Response, ResponseUsage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from quintet_common import sse
from quintet_common.dialect import Dialect, RequestDialect
from quintet_common.disconnect import or_disconnect
from quintet_common.errors import ApiError

from quintet_chat.api.obfuscation import obfuscation
from quintet_chat.api.response_events import ResponseWriter, new_id
from quintet_chat.api.response_request import ResponseRequest, as_response_error
from quintet_chat.api.tokens import tokens_of, worker_of
from quintet_chat.api.turn import Turn, as_prompt, start_turn
from quintet_chat.protocol import Delta, Finished


class _Response(Response):
    """The time is whole seconds on OpenAI's wire, though not in its type; clients in Go and Rust take nothing else."""

    created_at: int


def responses_router(service: str) -> APIRouter:
    """The routes of the models of kind ``service``: ``chat`` or ``multimodal``."""
    router = APIRouter(tags=["responses"])

    @router.post("/responses", response_model=Response)
    async def create_response(body: ResponseRequest, request: Request, dialect: RequestDialect) -> HttpResponse:
        """Answer a conversation with items: thoughts, a message, function calls; streamed as events on request."""
        turn = await or_disconnect(request, _start(body, request, dialect, service))
        writer = ResponseWriter(_empty(body, turn), turn.reading)
        if body.stream:
            obfuscates = body.stream_options is not None and bool(body.stream_options.include_obfuscation)
            return sse.sse_response(_events(turn, writer, obfuscates))
        await or_disconnect(request, _whole(turn, writer))
        return HttpResponse(
            writer.response.model_dump_json(exclude_unset=True, by_alias=True), media_type="application/json"
        )

    @router.post("/responses/input_tokens")
    async def count_input_tokens(
        body: ResponseRequest, request: Request, dialect: RequestDialect
    ) -> InputTokenCountResponse:
        """How many tokens the model would read of such a request, tools and pictures included; it answers nothing."""
        count = await or_disconnect(request, _count(body, request, dialect, service))
        return InputTokenCountResponse(input_tokens=count, object="response.input_tokens")

    return router


async def _start(body: ResponseRequest, request: Request, dialect: Dialect, service: str) -> Turn:
    body.refuse_unsupported()
    try:
        chat, paths = body.as_chat()
        return await start_turn(chat, request, dialect, service, paths)
    except ApiError as error:
        raise as_response_error(error) from None


async def _count(body: ResponseRequest, request: Request, dialect: Dialect, service: str) -> int:
    worker = worker_of(request, body.model, service)
    body.refuse_unsupported()
    try:
        chat, paths = body.as_chat()
        chat.refuse_unsupported()
        generation, _ = await as_prompt(chat, dialect, worker, paths)
        return len((await tokens_of(worker, generation)).tokens or [])
    except ApiError as error:
        raise as_response_error(error) from None


async def _whole(turn: Turn, writer: ResponseWriter) -> None:
    async for _ in _written(turn, writer):
        pass


async def _events(turn: Turn, writer: ResponseWriter, obfuscates: bool) -> AsyncGenerator[bytes, None]:
    for event in writer.begin():
        yield _as_bytes(event)
    try:
        async for event in _written(turn, writer):
            if obfuscates and isinstance(delta := getattr(event, "delta", None), str):
                event.obfuscation = obfuscation(len(delta))
            yield _as_bytes(event)
    except ApiError as error:
        for event in writer.fail(error):
            yield _as_bytes(event)


async def _written(turn: Turn, writer: ResponseWriter) -> AsyncGenerator[Any, None]:
    """The events between the first and the last; ``writer.response`` grows with them."""
    async with aclosing(turn.events) as events:
        async for event in events:
            if isinstance(event, Delta):
                for each in writer.add(event):
                    yield each
            elif isinstance(event, Finished):
                for each in writer.finish(event):
                    yield each
    writer.response.usage = _usage(turn, writer.reader.reasoning_tokens)
    for each in writer.end():
        yield each


def _as_bytes(event: Any) -> bytes:
    if hasattr(event, "response"):  # of a type of our own, which is to be heeded
        event = event.model_dump(mode="json", exclude_unset=True, by_alias=True, serialize_as_any=True)
        return sse.event(event, event["type"])
    return sse.event(event, event.type)


def _usage(turn: Turn, reasoning_tokens: int) -> ResponseUsage:
    meter = turn.meter
    return ResponseUsage(
        input_tokens=meter.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=meter.cached_tokens, cache_write_tokens=0),
        output_tokens=meter.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning_tokens),
        total_tokens=meter.prompt_tokens + meter.completion_tokens,
    )


def _empty(body: ResponseRequest, turn: Turn) -> Response:
    """The response before its first item: what was asked for, with the defaults that were taken."""
    asked = body.model_dump(include={"tools", "tool_choice", "text", "reasoning"}, exclude_none=True, by_alias=True)
    text = {"format": {"type": "text"}} | asked.get("text", {})
    unsaid = {"function": {"strict": None, "parameters": None}, "custom": {}}
    tools = [{**unsaid[tool["type"]], **tool} for tool in asked.get("tools", [])]
    return _Response.model_validate(
        {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": turn.model,
            "output": [],
            "parallel_tool_calls": turn.reading.plan.several and body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None} | asked.get("reasoning", {}),
            **body.model_dump(include={"max_tool_calls", "prompt_cache_key", "safety_identifier"}, exclude_none=True),
            "service_tier": "default",
            "store": False,
            "temperature": turn.sampling.temperature,
            "text": text,
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": tools,
            "top_logprobs": body.top_logprobs or 0,
            "top_p": turn.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }
    )
