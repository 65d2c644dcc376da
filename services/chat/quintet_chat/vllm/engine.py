"""Requests on a vLLM server: our queue limit and ends, its scheduling."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from functools import partial
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from quintet_common import checkpoint
from quintet_common.engine_args import Vllm
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import CRASHED, Emit, LoadError, Report, settings

from quintet_chat.protocol import Accepted, Finished, Generate
from quintet_chat.tools.thinking import state_after
from quintet_chat.vllm import answers, facts, requests
from quintet_chat.vllm.server import Server

log = logging.getLogger("quintet.vllm")
logging.getLogger("httpx2").setLevel(logging.WARNING)
POLL_SECONDS = 0.25
TAIL_TOKENS = 16
"""Of a prompt, among which is the tag that opens the thinking, if the template writes it."""

_STATS = {
    "vllm:num_requests_running": "num_requests_running",
    "vllm:num_requests_waiting": "num_requests_waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage_perc",
    "vllm:prefix_cache_queries": "prefix_cache_queries_total",
    "vllm:prefix_cache_hits": "prefix_cache_hits_total",
}
"""vLLM's metrics (families, as they are parsed) -> ours. Tokens of prompts and answers the service counts itself."""


class VllmEngine:
    """host.Engine for ``Generate``, on a server that it starts, or on the running one at ``engine_args: {url: …}``."""

    request_type = Generate

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._open: dict[int, asyncio.Task[None] | None] = {}
        self._loop = asyncio.new_event_loop()
        self._model = spec.id
        self._server: Server | None = None
        self._died: str | None = None
        self._ready = False
        self._vocabulary: int | None = None

    def load(self, report: Report) -> dict[str, Any]:
        """Start the server and wait until it answers. Raises LoadError with what vLLM said."""
        given = settings(self._spec, Vllm)
        url, key = given.url, given.key
        if url is None:
            self._check()
            self._server = Server(self._spec, report, self._on_death)
            self._server.start()
            url, key = self._server.url, self._server.key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        base = str(url).rstrip("/").removesuffix("/v1")
        self._sync = httpx2.Client(base_url=base, headers=headers, timeout=10.0)
        served = self._wait_for(self._sync, base)
        self._model = served["id"]
        self._context: int | None = served.get("max_model_len")
        threading.Thread(target=self._run, args=(base, headers), name="requests", daemon=True).start()
        self._ready = True
        if self._died is not None:  # after it had answered, and before anybody would have been told
            raise LoadError(f"{self._spec.id}: vLLM ended: {self._died}")
        info = facts.info(self._spec, self._context)
        self._vocabulary = info.get("vocab_size")
        return info

    def _check(self) -> None:
        """Raise LoadError for what is known to be wrong; the log says what the entry has turned on."""
        if problem := checkpoint.obstacle(self._spec, facts.config_of(self._spec)):
            raise LoadError(problem)
        for name in ("trust_remote_code", "pickled_weights"):
            if self._spec.engine_args.get(name):
                log.warning("%s: %s is on.", self._spec.id, name)

    def submit(self, request_id: int, body: Generate, emit: Emit) -> None:
        """Send a request on; ApiError 429 when more than ``max_waiting`` are on their way beside the batch."""
        if len(self._open) >= self._spec.max_waiting + (self._spec.max_batch or 256):
            message = (
                f"The model {self._spec.id!r} has {len(self._open)} requests, which is its limit. Try again later."
            )
            raise ApiError(429, message, code="queue_full", retry_after=1)
        self._open[request_id] = None
        self._loop.call_soon_threadsafe(self._begin, request_id, body, emit)

    def cancel(self, request_id: int) -> None:
        self._loop.call_soon_threadsafe(self._cancel, request_id)

    def stats(self) -> dict[str, float]:
        try:
            text = self._sync.get("/metrics").text
            families = list(text_string_to_metric_families(text))
        except (httpx2.HTTPError, ValueError):  # it is about to end, or has no metrics
            return {}
        found = dict.fromkeys(_STATS.values(), 0.0)
        for family in families:
            if name := _STATS.get(family.name):
                found[name] = sum(sample.value for sample in family.samples if not sample.name.endswith("_created"))
        return found

    # Loading.

    def _wait_for(self, client: httpx2.Client, base: str) -> dict[str, Any]:
        """What the server says of the model, once it answers."""
        while True:
            if self._died is not None:
                raise LoadError(f"{self._spec.id}: vLLM ended: {self._died}")
            try:
                answer = client.get("/v1/models")
            except httpx2.HTTPError as error:
                if self._server is None:
                    # Another start may find it there.
                    raise ConnectionError(f"{self._spec.id}: no vLLM answers at {base}: {error}") from None
                time.sleep(POLL_SECONDS)
                continue
            if answer.status_code != 200:
                raise LoadError(f"{self._spec.id}: {base}/v1/models answers {answer.status_code}: {answer.text[:200]}")
            models: list[dict[str, Any]] = answer.json()["data"]
            for model in models:
                if len(models) == 1 or model["id"] in (self._spec.id, self._spec.path):
                    return model
            raise LoadError(
                f"{self._spec.id}: {base} serves no {self._spec.path!r}: {[each['id'] for each in models]}."
            )

    def _on_death(self, reason: str) -> None:
        self._died = reason
        if self._ready:
            log.critical("vLLM ended: %s", reason)
            os._exit(CRASHED)

    # The loop's thread.

    def _run(self, base: str, headers: dict[str, str]) -> None:
        asyncio.set_event_loop(self._loop)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)
        timeout = httpx2.Timeout(None, connect=10.0)
        self._client = httpx2.AsyncClient(base_url=base, headers=headers, limits=limits, timeout=timeout)
        self._loop.run_forever()

    def _begin(self, request_id: int, body: Generate, emit: Emit) -> None:
        task = self._loop.create_task(self._serve(body, emit))
        self._open[request_id] = task
        task.add_done_callback(partial(self._end, request_id, emit))

    def _cancel(self, request_id: int) -> None:
        if (task := self._open.get(request_id)) is not None:
            task.cancel()

    def _end(self, request_id: int, emit: Emit, task: asyncio.Task[None]) -> None:
        del self._open[request_id]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ApiError):
            emit.fail(error)
        elif isinstance(error, httpx2.HTTPError):
            log.warning("a request broke off: %r", error)
            emit.fail(ApiError(503, "The connection to vLLM broke.", retry_after=1))
        elif error is not None:
            log.error("a request failed", exc_info=error)
            emit.fail(ApiError(500, "The model failed on this request; the service's log has the details."))
        else:
            emit.done()

    async def _serve(self, body: Generate, emit: Emit) -> None:
        if body.only_tokens:
            emit(await self._tokens(body))
            return
        if body.sampling.max_tokens == 0:  # the prompt is all there is
            emit(Accepted((await self._tokens(body)).prompt_tokens, await self._prompt_text(body)))
            for index in range(body.n):
                emit(Finished(index, "length"))
            return
        text, thinking = None, await self._thinking(body)
        if body.messages is not None:
            path, wanted = "/v1/chat/completions", requests.chat(self._model, body, thinking)
        else:
            text = await self._prompt_text(body)
            path, wanted = "/v1/completions", requests.completion(self._model, body, await self._room(body))
        finished = 0
        async with self._client.stream("POST", path, json=wanted) as answer:
            if answer.status_code != 200:
                given = "prompt" if body.messages is None else "messages"
                raise answers.failure(answer.status_code, _error(await answer.aread()), given)
            async for event in answers.events(answer.aiter_lines(), text, thinking=thinking == "open"):
                finished += isinstance(event, Finished)
                emit(event)
        if finished < body.n:
            raise ApiError(503, "vLLM's answer broke off.", retry_after=1)

    def _check_ids(self, tokens: list[int]) -> None:
        """vLLM passes over those that it does not know where it makes text of them."""
        wrong = next((token for token in tokens if self._vocabulary and token >= self._vocabulary), None)
        if wrong is not None:
            limit = (self._vocabulary or 0) - 1
            raise ApiError(400, f"Token id {wrong} in prompt is not between 0 and {limit}.", param="prompt")

    async def _tokens(self, body: Generate) -> Accepted:
        """The prompt as tokens."""
        if isinstance(body.prompt, list):
            self._check_ids(body.prompt)
            return Accepted(len(body.prompt), await self._prompt_text(body), tokens=body.prompt)
        found = await self._post("/tokenize", requests.tokens(self._model, body))
        return Accepted(int(found["count"]), tokens=found["tokens"], token_texts=found.get("token_strs"))

    async def _thinking(self, body: Generate) -> requests.Thinking:
        """What the chat template has made of the model's thinking: the end of the prompt says it."""
        if body.thinking is None:
            return None
        tokens = (await self._tokens(body)).tokens or []
        return state_after(await self._text(tokens[-TAIL_TOKENS:]), body.thinking)

    async def _prompt_text(self, body: Generate) -> str | None:
        """The prompt as text, if the request wants that."""
        if not body.echo:
            return None
        return await self._text(body.prompt) if isinstance(body.prompt, list) else body.prompt

    async def _text(self, tokens: list[int]) -> str:
        return str((await self._post("/detokenize", {"model": self._model, "tokens": tokens}))["prompt"])

    async def _room(self, body: Generate) -> int | None:
        """What the context leaves for an answer that has no limit of its own; vLLM would stop after 16 tokens."""
        if body.sampling.max_tokens is not None or self._context is None:
            return None
        return max(1, self._context - (await self._tokens(body)).prompt_tokens)

    async def _post(self, path: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Raises ApiError for what vLLM refuses."""
        answer = await self._client.post(path, json=wanted)
        if answer.status_code != 200:
            raise answers.failure(answer.status_code, _error(answer.content))
        found: dict[str, Any] = answer.json()
        return found


def _error(content: bytes) -> dict[str, Any]:
    try:
        error = httpx2.Response(200, content=content).json()
        found = error.get("error", error)
        return found if isinstance(found, dict) else {"message": str(found)}
    except (ValueError, AttributeError):
        return {"message": content.decode(errors="replace")}
