"""``POST /chat/completions``: a conversation in, the next message out, whole or as it grows."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types.chat import ChatCompletion
from openai.types.completion_usage import CompletionUsage
from quintet_common import sse
from quintet_common.dialect import Dialect, RequestDialect
from quintet_common.disconnect import or_disconnect

from quintet_chat.api.chat_answer import ChatAnswer
from quintet_chat.api.chat_request import ChatRequest
from quintet_chat.api.chunks import ChunkWriter
from quintet_chat.api.finish import usage_of
from quintet_chat.api.turn import Turn, start_turn
from quintet_chat.api.zlai import ZlaiChunkWriter
from quintet_chat.protocol import Delta, Finished


def chat_router(service: str) -> APIRouter:
    """The route of the models of kind ``service``: ``chat`` or ``multimodal``."""
    router = APIRouter(tags=["chat"])

    @router.post("/chat/completions", response_model=ChatCompletion)
    async def create_chat_completion(body: ChatRequest, request: Request, dialect: RequestDialect) -> Response:
        """Answer a conversation: text, tool calls or JSON, streamed when ``stream`` is true."""
        turn = await or_disconnect(request, start_turn(body, request, dialect, service))
        if body.stream:
            return sse.sse_response(_chunks(turn, body, dialect))
        answer = await or_disconnect(request, _whole(turn, _head(turn, body)))
        return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")

    return router


def _head(turn: Turn, body: ChatRequest) -> dict[str, Any]:
    """What all chunks of an answer have, or the whole. The tier is told to those who asked for one."""
    tier = {} if body.service_tier is None else {"service_tier": "default"}
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": turn.model, **tier}


def _usage(turn: Turn, reasoning_tokens: int) -> CompletionUsage:
    return usage_of(turn.meter, reasoning_tokens=None if turn.reading.thinking is None else reasoning_tokens)


async def _whole(turn: Turn, head: dict[str, Any]) -> ChatCompletion:
    answer = ChatAnswer(turn.reading, turn.choices)
    async with aclosing(turn.events) as events:
        async for event in events:
            answer.add(event)
    usage = _usage(turn, answer.reasoning_tokens)
    return ChatCompletion(**head, object="chat.completion", choices=answer.choices(), usage=usage)


async def _chunks(turn: Turn, body: ChatRequest, dialect: Dialect) -> AsyncGenerator[bytes, None]:
    head = _head(turn, body) | {"object": "chat.completion.chunk"} | ({"usage": None} if body.includes_usage else {})
    kind = ZlaiChunkWriter if dialect is Dialect.ZLAI else ChunkWriter
    writer = kind(head, turn.reading, turn.choices, obfuscates=body.obfuscates)
    async with aclosing(turn.events) as events:
        for index in range(turn.choices):
            yield writer.first(index)
        async for event in events:
            if isinstance(event, Delta):
                for chunk in writer.text(event.index, event):
                    yield chunk
            elif isinstance(event, Finished):
                for chunk in writer.last(event):
                    yield chunk
    if body.includes_usage:
        yield writer.usage(_usage(turn, writer.reasoning_tokens))
    yield sse.DONE
