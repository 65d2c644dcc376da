"""A conversation on its way to the worker and back: what chat completions and responses have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from quintet_common.dialect import Dialect
from quintet_common.observation import observation_of
from quintet_common.pool import ModelPool
from quintet_common.worker.process import Worker

from quintet_chat.api.chat_request import ChatRequest
from quintet_chat.api.generation import accepted, generate
from quintet_chat.api.messages import read_conversation
from quintet_chat.api.reading import Reading
from quintet_chat.api.tool_plan import family_of, grammar_of, is_small_model, plan_tools
from quintet_chat.metrics import Meter
from quintet_chat.protocol import Event, Generate, Sampling
from quintet_chat.tools import FAMILIES, HARMONY, THINKING
from quintet_chat.tools.rendering import as_plain_messages
from quintet_chat.tools.thinking import TAGS

_HARMONY_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""Harmony knows low, medium and high."""


_SWITCHES = ("enable_thinking", "thinking", "reasoning")
"""What templates call the switch: those of Qwen, GLM, Hunyuan and Gemma; of DeepSeek and Granite; of Cohere. Seed-OSS
has a budget instead."""


@dataclass(frozen=True)
class Turn:
    """A request that the worker has taken: what comes, and how to read it."""

    events: AsyncGenerator[Event, None]
    meter: Meter
    reading: Reading
    model: str
    """As the client names it."""
    sampling: Sampling
    choices: int


async def start_turn(
    body: ChatRequest, request: Request, dialect: Dialect, service: str, paths: Sequence[str] | None = None
) -> Turn:
    """Everything that can be refused is refused here, with its HTTP status. ``paths`` name the messages in errors."""
    pool: ModelPool[Event] = request.app.state.pool
    worker = pool.find(body.model or None, service)
    seen = observation_of(request)
    seen.model = worker.spec.id
    body.refuse_unsupported()
    generation, reading = await _as_generate(body, dialect, worker, paths)
    meter = Meter(seen, generation.n)
    events = generate(worker, generation, meter)
    begun = await accepted(events)
    reading = replace(reading, inside=begun.thinking)
    return Turn(events, meter, reading, body.model or worker.spec.id, generation.sampling, generation.n)


async def as_prompt(
    body: ChatRequest, dialect: Dialect, worker: Worker[Event], paths: Sequence[str] | None = None
) -> tuple[Generate, Reading]:
    """The part of a request that the chat template is given, and how an answer to it would be read."""
    by_kind = ["image"] if worker.spec.kind == "multimodal" else []
    sees = "image" in worker.info.get("modalities", by_kind)
    refusal = None if sees else f"The model {worker.spec.id!r} does not take pictures."
    conversation = await read_conversation(body.messages, dialect, refusal, paths)
    messages = conversation.messages
    given = body, worker, messages[-1]["role"]
    # Reading the grammars of custom tools can take a second, in which others are to be answered.
    plan = await asyncio.to_thread(plan_tools, *given) if body.tools else plan_tools(*given)
    tools = plan.tools
    if not worker.info.get("template_tools"):
        family = plan.family or FAMILIES["hermes"]
        messages, tools = as_plain_messages(messages, tools, family, forced=plan.mode == "required"), []
    thinking = thinking_of(worker)
    generation = Generate(
        messages=messages,
        images=conversation.pictures,
        tools=tools,
        template_args=_template_args(body, thinking),
        thinking=TAGS[thinking].around if thinking in TAGS else None,
    )
    return generation, Reading(plan, thinking)


async def _as_generate(
    body: ChatRequest, dialect: Dialect, worker: Worker[Event], paths: Sequence[str] | None
) -> tuple[Generate, Reading]:
    """The request as the worker takes it."""
    generation, reading = await as_prompt(body, dialect, worker, paths)
    generation.sampling = body.sampling(worker, body.token_limit, body.alternatives)
    generation.n = body.n or 1
    tags = TAGS.get(reading.thinking or "")
    generation.grammar = grammar_of(body, reading.plan, is_small_model(worker), tags.answer if tags else None)
    generation.marks = _marks(reading)
    return generation, reading


def thinking_of(worker: Worker[Any]) -> str | None:
    """The model's style of thinking: ``engine_args: {thinking: NAME}`` of models.yml, else what the worker found."""
    if family_of(worker) is HARMONY:
        return HARMONY.name
    name = worker.spec.engine_args.get("thinking", worker.info.get("thinking"))
    return name if name in THINKING else None


def _marks(reading: Reading) -> list[str]:
    """Special tokens that whoever reads the answer needs to see."""
    if reading.thinking == HARMONY.name:
        return list(HARMONY.marks)
    marks = TAGS[reading.thinking].marks if reading.thinking is not None else []
    family = reading.plan.family
    return [*marks, *family.marks] if family is not None and reading.plan.functions else marks


def _template_args(body: ChatRequest, thinking: str | None) -> dict[str, Any]:
    """Variables of the chat template: the request's own, and the effort under the names that templates know."""
    args = dict(body.chat_template_kwargs or {})
    effort = body.reasoning_effort
    if effort is None:
        return args
    if thinking == HARMONY.name:
        return {"reasoning_effort": _HARMONY_EFFORTS.get(effort, effort)} | args
    thinks = effort != "none"
    budget = {} if thinks else {"thinking_budget": 0}
    return {"reasoning_effort": effort, **dict.fromkeys(_SWITCHES, thinks), **budget} | args
