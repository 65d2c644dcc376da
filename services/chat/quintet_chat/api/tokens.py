"""``POST /tokenize`` and ``/detokenize``: what the model reads instead of a text or a conversation, and back.

The shapes are vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from quintet_common.dialect import Dialect, RequestDialect
from quintet_common.disconnect import or_disconnect
from quintet_common.errors import ApiError, bad_request
from quintet_common.observation import observation_of
from quintet_common.pool import ModelPool
from quintet_common.worker.process import Worker

from quintet_chat.api.chat_request import MAX_MESSAGES, ChatRequest, Message, Tool
from quintet_chat.api.sampling import INT64
from quintet_chat.api.turn import as_prompt
from quintet_chat.protocol import Accepted, Event, Generate

_STRICT = ConfigDict(strict=True)


class TokenizeRequest(BaseModel):
    """Either ``prompt`` or ``messages``."""

    model_config = _STRICT

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    """By default true, and false with ``continue_final_message``, which forbids it."""
    continue_final_message: bool = False
    """Whether the last message is an answer that the model is to go on with."""
    chat_template: str | None = None
    """Refused: a template of the client's own is code."""
    add_special_tokens: bool | None = None
    """By default true for a prompt and false for messages, whose template writes them."""
    return_token_strs: bool | None = None


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None
    """Each token as the vocabulary writes it, on request."""


class DetokenizeRequest(BaseModel):
    model_config = _STRICT

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=INT64)]]


class DetokenizeResponse(BaseModel):
    prompt: str


def tokens_router(service: str) -> APIRouter:
    """The routes of the models of kind ``service``: ``chat`` or ``multimodal``."""
    router = APIRouter(tags=["tokens"])

    @router.post("/tokenize", response_model_exclude_none=True)
    async def tokenize(body: TokenizeRequest, request: Request, dialect: RequestDialect) -> TokenizeResponse:
        """The tokens of a text, or of a conversation as the model is given it, to count them before sending."""
        worker = worker_of(request, body.model, service)
        found = await or_disconnect(request, tokens_of(worker, await _as_generate(body, dialect, worker)))
        assert found.tokens is not None
        return TokenizeResponse(
            count=len(found.tokens),
            max_model_len=worker.info.get("context", 0),
            tokens=found.tokens,
            token_strs=found.token_texts if body.return_token_strs else None,
        )

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest, request: Request, dialect: RequestDialect) -> DetokenizeResponse:
        """The text of tokens, special ones included."""
        del dialect  # the two do not differ here
        worker = worker_of(request, body.model, service)
        if not body.tokens:
            return DetokenizeResponse(prompt="")
        try:
            found = await or_disconnect(request, tokens_of(worker, Generate(prompt=body.tokens, echo=True)))
        except ApiError as error:
            if error.param == "prompt":
                error.param, error.message = "tokens", error.message.replace("prompt", "tokens")
            raise
        return DetokenizeResponse(prompt=found.prompt_text or "")

    return router


def worker_of(request: Request, model: str | None, service: str) -> Worker[Event]:
    """The model that a request is for, which its observation then knows."""
    pool: ModelPool[Event] = request.app.state.pool
    worker = pool.find(model or None, service)
    observation_of(request).model = worker.spec.id
    return worker


async def _as_generate(body: TokenizeRequest, dialect: Dialect, worker: Worker[Event]) -> Generate:
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("Give either prompt or messages.", "prompt", "invalid_value")
    if body.chat_template is not None:
        message = "chat_template: only the model's own template is used here; chat_template_kwargs are its variables."
        raise bad_request(message, "chat_template", "unsupported_parameter")
    if body.messages is None:
        generation = Generate(prompt=body.prompt)
    else:
        chat = ChatRequest(messages=body.messages, tools=body.tools, chat_template_kwargs=body.chat_template_kwargs)
        chat.refuse_unsupported()
        generation, _ = await as_prompt(chat, dialect, worker)
        if body.continue_final_message:
            _continue_last(generation, body)
        else:
            generation.add_generation_prompt = body.add_generation_prompt is not False
    generation.add_special_tokens = body.add_special_tokens
    return generation


def _continue_last(generation: Generate, body: TokenizeRequest) -> None:
    """Make the last message the beginning of the answer."""
    if body.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt cannot both be true."
        raise bad_request(message, "add_generation_prompt", "invalid_value")
    *before, last = generation.messages or []
    if last["role"] != "assistant" or not isinstance(last["content"], str) or not before:
        path = f"messages[{len(body.messages or []) - 1}]"
        message = f"{path}: continue_final_message needs an answer in text behind another message."
        raise bad_request(message, path, "invalid_value")
    generation.messages, generation.assistant_prefix = before, last["content"]


async def tokens_of(worker: Worker[Event], generation: Generate) -> Accepted:
    """What the model would read, and nothing generated. Raises ApiError 400 for a model that cannot tell."""
    generation.only_tokens = True
    async with await worker.submit(generation) as job:
        event = await anext(job)
        if isinstance(event, Accepted) and event.tokens is not None:
            return event
    raise bad_request(f"The model {worker.spec.id!r} has no tokens to show.", "model", "unsupported_parameter")
