"""``POST /chat/completions``: a conversation in, the next message out, whole or as it grows."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types.chat import ChatCompletion
from quintet_common import sse
from quintet_common.dialect import Dialect, RequestDialect
from quintet_common.disconnect import or_disconnect
from quintet_common.observation import observation_of
from quintet_common.pool import ModelPool
from quintet_common.worker.process import Worker

from quintet_chat.api.chat_answer import ChatAnswer
from quintet_chat.api.chat_request import ChatRequest
from quintet_chat.api.chunks import ChunkWriter
from quintet_chat.api.finish import usage_of
from quintet_chat.api.generation import accepted, generate
from quintet_chat.api.messages import read_conversation
from quintet_chat.api.tool_plan import ToolPlan, grammar_of, is_small_model, plan_tools
from quintet_chat.api.zlai import ZlaiChunkWriter
from quintet_chat.metrics import Meter
from quintet_chat.protocol import Delta, Event, Finished, Generate
from quintet_chat.tools import FAMILIES
from quintet_chat.tools.rendering import as_plain_messages


@dataclass(frozen=True)
class _Turn:
    """A request that the worker has taken: what comes, and how to write it."""

    events: AsyncGenerator[Event, None]
    meter: Meter
    plan: ToolPlan
    head: dict[str, Any]
    choices: int


def chat_router(service: str) -> APIRouter:
    """The route of the models of kind ``service``: ``chat`` or ``multimodal``."""
    router = APIRouter(tags=["chat"])

    @router.post("/chat/completions", response_model=ChatCompletion)
    async def create_chat_completion(body: ChatRequest, request: Request, dialect: RequestDialect) -> Response:
        """Answer a conversation: text, tool calls or JSON, streamed when ``stream`` is true."""
        turn = await or_disconnect(request, _start(body, request, dialect, service))
        if body.stream:
            return sse.sse_response(_chunks(turn, body, dialect))
        answer = await or_disconnect(request, _whole(turn))
        return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")

    return router


async def _start(body: ChatRequest, request: Request, dialect: Dialect, service: str) -> _Turn:
    """Everything that can be refused is refused here, with its HTTP status."""
    pool: ModelPool[Event] = request.app.state.pool
    worker = pool.find(body.model or None, service)
    seen = observation_of(request)
    seen.model = worker.spec.id
    body.refuse_unsupported()
    generation, plan = await _as_generate(body, dialect, worker)
    meter = Meter(seen, generation.n)
    events = generate(worker, generation, meter)
    await accepted(events)
    head: dict[str, Any] = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": body.model or worker.spec.id,
    }
    return _Turn(events, meter, plan, head, generation.n)


async def _as_generate(body: ChatRequest, dialect: Dialect, worker: Worker[Event]) -> tuple[Generate, ToolPlan]:
    """The request as the worker takes it."""
    refusal = None if worker.spec.kind == "multimodal" else f"The model {worker.spec.id!r} does not take pictures."
    conversation = await read_conversation(body.messages, dialect, refusal)
    messages = conversation.messages
    plan = plan_tools(body, worker, messages[-1]["role"])
    tools = plan.tools
    if not worker.info.get("template_tools"):
        family = plan.family or FAMILIES["hermes"]
        messages, tools = as_plain_messages(messages, tools, family, forced=plan.mode == "required"), []
    template_args = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        template_args.setdefault("reasoning_effort", body.reasoning_effort)
    generation = Generate(
        messages=messages,
        images=conversation.pictures,
        tools=tools,
        template_args=template_args,
        sampling=body.sampling(worker, body.token_limit, body.alternatives),
        n=body.n or 1,
        grammar=grammar_of(body, plan, is_small_model(worker)),
        special_tokens=bool(plan.functions and plan.family and plan.family.special_tokens),
    )
    return generation, plan


async def _whole(turn: _Turn) -> ChatCompletion:
    answer = ChatAnswer(turn.plan, turn.choices)
    async with aclosing(turn.events) as events:
        async for event in events:
            answer.add(event)
    return ChatCompletion(**turn.head, object="chat.completion", choices=answer.choices(), usage=usage_of(turn.meter))


async def _chunks(turn: _Turn, body: ChatRequest, dialect: Dialect) -> AsyncGenerator[bytes, None]:
    head = turn.head | {"object": "chat.completion.chunk"} | ({"usage": None} if body.includes_usage else {})
    writer = (ZlaiChunkWriter if dialect is Dialect.ZLAI else ChunkWriter)(head, turn.plan)
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
        yield writer.usage(usage_of(turn.meter))
    yield sse.DONE
