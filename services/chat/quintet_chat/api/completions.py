"""``POST /completions``: text in, its continuation out; several prompts at once keep their order."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types import Completion
from quintet_common import sse
from quintet_common.dialect import RequestDialect
from quintet_common.disconnect import or_disconnect
from quintet_common.errors import bad_request
from quintet_common.observation import observation_of
from quintet_common.pool import ModelPool
from quintet_common.worker.process import Worker

from quintet_chat.api.completion_request import DEFAULT_MAX_TOKENS, CompletionRequest
from quintet_chat.api.completion_text import Prompt
from quintet_chat.api.finish import usage_of
from quintet_chat.api.merge import merged, together
from quintet_chat.api.obfuscation import obfuscation
from quintet_chat.protocol import Event, Generate


def completions_router(service: str) -> APIRouter:
    """The route of the models of kind ``service``: ``chat`` or ``multimodal``."""
    router = APIRouter(tags=["completions"])

    @router.post("/completions", response_model=Completion)
    async def create_completion(body: CompletionRequest, request: Request, dialect: RequestDialect) -> Response:
        """Continue one text or several, given as strings or token ids; streamed when ``stream`` is true."""
        del dialect  # the two do not differ here
        pool: ModelPool[Event] = request.app.state.pool
        worker = pool.find(body.model or None, service)
        observation_of(request).model = worker.spec.id
        body.refuse_unsupported()
        prompts = await or_disconnect(request, _start(body, request, worker))
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model or worker.spec.id,
            "object": "text_completion",
        }
        if body.stream:
            return sse.sse_response(_chunks(prompts, body, head))
        answer = await or_disconnect(request, _whole(prompts, body, head))
        return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")

    return router


async def _start(body: CompletionRequest, request: Request, worker: Worker[Event]) -> list[Prompt]:
    """Hand over every prompt; when one is refused, those that were taken are cancelled."""
    max_tokens = body.max_tokens
    if max_tokens is None:
        max_tokens = worker.sampling.get("max_tokens", DEFAULT_MAX_TOKENS)
    logprobs = body.logprobs
    if logprobs is None and body.candidates > (body.n or 1):
        logprobs = 0  # needed to tell which candidates are the best
    sampling = body.sampling(worker, max_tokens, logprobs)
    seen = observation_of(request)
    prompts: list[Prompt] = []
    for prompt in body.prompts:
        generation = Generate(prompt=prompt, sampling=sampling, n=body.candidates, echo=bool(body.echo))
        prompts.append(Prompt(worker, generation, seen, first_choice=len(prompts) * (body.n or 1)))
    try:
        await together(prompt.start() for prompt in prompts)
        if body.echo and any(prompt.text is None for prompt in prompts):
            message = f"echo: the model {worker.spec.id!r} cannot turn token ids back into text."
            raise bad_request(message, "echo", "unsupported_parameter")
    except BaseException:
        await _close(prompts)
        raise
    return prompts


async def _close(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        await prompt.close()


async def _whole(prompts: list[Prompt], body: CompletionRequest, head: dict[str, Any]) -> Completion:
    try:
        await together(prompt.read() for prompt in prompts)
    finally:
        await _close(prompts)
    choices = []
    for prompt in prompts:
        choices += prompt.choices(best=body.n or 1, with_logprobs=body.logprobs is not None)
    return Completion(**head, choices=choices, usage=usage_of(*(prompt.meter for prompt in prompts)))


async def _chunks(prompts: list[Prompt], body: CompletionRequest, head: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    if body.includes_usage:
        head = head | {"usage": None}
    try:
        async for choice in merged([prompt.stream() for prompt in prompts]):
            added = {"obfuscation": obfuscation(len(choice.text))} if body.obfuscates else {}
            yield sse.event(Completion.model_construct(**head | added, choices=[choice]))
    finally:
        await _close(prompts)
    if body.includes_usage:
        usage = usage_of(*(prompt.meter for prompt in prompts))
        yield sse.event(Completion.model_construct(**head | {"choices": [], "usage": usage}))
    yield sse.DONE
