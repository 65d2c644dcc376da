"""The chat engine: takes requests from the worker's host and joins the threads that serve them.

submit -> prepare thread (template, tokens; pictures have one of their own) -> grammar thread, if there is one to
compile -> model thread (scheduler) -> output thread (text, events). Each hands on by a queue; every request leaves
through the output thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Emit, Report

from quintet_chat.backends.loader import LoadedModel, load
from quintet_chat.engine.grammar import Grammars
from quintet_chat.engine.output import Ended, Output
from quintet_chat.engine.pictures import Held
from quintet_chat.engine.prepare import Preparer
from quintet_chat.engine.request import Request
from quintet_chat.engine.scheduler import Scheduler, sequences_of
from quintet_chat.protocol import Accepted, Finished, Generate

log = logging.getLogger("quintet.chat")
DEFAULT_MAX_BATCH = 32
GRAMMAR_THREADS = 16
"""They wait for a compilation; how many of these run at once is ``grammar.THREADS``. Grammars that are known wait for
nobody."""


class ChatEngine:
    """Continuous batching over a transformers model (host.Engine for ``Generate``)."""

    request_type = Generate

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._open: dict[int, Request] = {}
        self._scheduler: Scheduler
        self._mean_seconds = 1.0

    def load(self, report: Report) -> dict[str, Any]:
        """Load the model, warm it up, start the threads. Raises LoadError."""
        model = load(self._spec, self._spec.max_batch or DEFAULT_MAX_BATCH, report)
        self._start(model)
        return model.info

    def _start(self, model: LoadedModel) -> None:
        limits = model.context, model.vocabulary, model.eos
        self._preparer = self._picture_preparer = Preparer(model.tokenizer, *limits)
        if model.reader is not None:
            self._picture_preparer = Preparer(model.reader.tokenizer, *limits, model.reader)
        self._held = Held()
        self._grammars = Grammars(model.tokenizer, model.vocabulary, model.eos)
        self._output = Output(model.tokenizer, self._on_end)
        batch = self._spec.max_batch or DEFAULT_MAX_BATCH
        self._scheduler = Scheduler(model.runner, self._output, batch, model.chunk, model.prefixes)
        self._prepare_thread = ThreadPoolExecutor(1, "prepare")
        self._picture_thread = ThreadPoolExecutor(1, "pictures")
        self._grammar_threads = ThreadPoolExecutor(GRAMMAR_THREADS, "grammar")
        self._threads = [
            threading.Thread(target=self._output.run, name="output", daemon=True),
            threading.Thread(target=self._scheduler.run, name="model", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads, for a process that goes on without the model. Requests that are open get no end."""
        self._prepare_thread.shutdown()
        self._held.close()
        self._picture_thread.shutdown()
        self._grammar_threads.shutdown()
        self._grammars.close()
        self._scheduler.close()
        self._output.close()
        for thread in self._threads:
            thread.join()

    def submit(self, request_id: int, body: Generate, emit: Emit) -> None:
        """Queue a request; ApiError 429 when ``max_waiting`` wait already and no slot is free."""
        running = self._scheduler.active
        waiting = len(self._open) - len({sequence.request for sequence in running})
        if waiting >= self._spec.max_waiting + max(0, self._scheduler.max_batch - len(running)):
            raise self._full(waiting)
        request = self._open[request_id] = Request(request_id, body, emit, time.monotonic())
        if body.images:
            self._picture_thread.submit(self._prepare_pictures, request)
        else:
            self._prepare_thread.submit(self._guarded, request, self._prepare)

    def cancel(self, request_id: int) -> None:
        if request := self._open.get(request_id):
            request.cancelled = True
            self._scheduler.wake()

    def stats(self) -> dict[str, float]:
        """vLLM's names where they exist; counters end in ``_total``."""
        running = len({sequence.request for sequence in self._scheduler.active})
        return {
            "num_requests_running": running,
            "num_requests_waiting": max(0, len(self._open) - running),
            "kv_cache_usage_perc": round(self._scheduler.usage, 4),
            **{f"{name}_total": float(value) for name, value in list(self._scheduler.counters.items())},
        }

    def _full(self, waiting: int) -> ApiError:
        seconds = min(60, max(1, math.ceil(self._mean_seconds * waiting / self._scheduler.max_batch)))
        message = f"The model {self._spec.id!r} has {waiting} requests waiting, which is its limit. Try again later."
        return ApiError(429, message, code="queue_full", retry_after=seconds)

    def _guarded(self, request: Request, stage: Callable[[Request], None]) -> None:
        """Run one stage of preparation; what goes wrong there ends that request alone."""
        try:
            if request.cancelled:
                self._output.put([Ended(request)])
            else:
                stage(request)
        except ApiError as error:
            self._output.put([Ended(request, error)])
        except Exception:
            log.exception("preparing a request failed")
            failure = ApiError(500, "The model failed on this request; the service's log has the details.")
            self._output.put([Ended(request, failure)])

    def _prepare_pictures(self, request: Request) -> None:
        self._held.wait()
        self._guarded(request, self._prepare)

    def _prepare(self, request: Request) -> None:
        preparer = self._picture_preparer if request.body.images else self._preparer
        preparer.prepare(request)
        if request.pictures is not None:
            self._held.add(request.id, request.pictures.bytes)
        if request.body.grammar is None:
            self._accept(request)
        elif self._grammars.knows(request.body.grammar):
            self._compile(request)
        else:
            self._grammar_threads.submit(self._guarded, request, self._compile)

    def _compile(self, request: Request) -> None:
        assert request.body.grammar is not None
        tags = None if request.thinking == "closed" else request.body.thinking
        inside = request.thinking == "open"
        request.grammar = self._grammars.compile(request.body.grammar, tags, inside, lambda: request.cancelled)
        self._accept(request)

    def _accept(self, request: Request) -> None:
        if request.body.only_tokens:
            self._show_tokens(request)
            return
        text = self._preparer.text_of(request.prompt) if request.body.echo else None
        request.sequences = sequences_of(request)
        request.open_choices = request.body.n
        request.emit(Accepted(len(request.prompt), prompt_text=text, thinking=request.thinking == "open"))
        if request.max_tokens:
            self._scheduler.add(request)
            return
        for index in range(request.body.n):  # max_tokens of 0: the prompt is all there is
            request.emit(Finished(index, "length"))
        self._output.put([Ended(request)])

    def _show_tokens(self, request: Request) -> None:
        text = self._preparer.text_of(request.prompt, special=True) if request.body.echo else None
        texts = self._preparer.texts_of(request.prompt)
        request.emit(Accepted(len(request.prompt), prompt_text=text, tokens=request.prompt, token_texts=texts))
        self._output.put([Ended(request)])

    def _on_end(self, request: Request) -> None:
        del self._open[request.id]
        self._held.drop(request.id)
        self._mean_seconds += 0.1 * (time.monotonic() - request.arrived - self._mean_seconds)
