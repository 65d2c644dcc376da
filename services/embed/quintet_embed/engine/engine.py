"""The engine of a worker process: requests in, one event each out; a tokeniser thread feeds a model thread."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np
from quintet_common.errors import ApiError
from quintet_common.memory import give_back
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Emit, Report

from quintet_embed.backends.base import Backend, DeviceLost
from quintet_embed.engine.batches import cut
from quintet_embed.engine.job import Extra, Item, Job, Rows, Tokens, field_of, new_job
from quintet_embed.engine.queue import FairQueue
from quintet_embed.protocol import Request, TokenizeRequest, TokenLists

log = logging.getLogger("quintet.embed")


def load_backend(spec: ModelSpec, report: Report) -> Backend:
    """Load the model of ``spec``. The import is here because it takes seconds and brings torch."""
    report(0.02, "importing sentence-transformers")
    if spec.kind == "rerank":
        from quintet_embed.backends.cross_encoder import load_reranker

        return load_reranker(spec, report)
    from quintet_embed.backends.sentence_transformers import load_embedder

    return load_embedder(spec, report)


class EmbedEngine:
    """Schedules requests onto one model. ``backend`` is for tests; otherwise ``load`` makes it from the spec."""

    request_type: Any = Request

    def __init__(self, spec: ModelSpec, backend: Backend | None = None) -> None:
        self._spec = spec
        self._backend = backend
        self._queue = FairQueue(spec.max_waiting)
        self._max_items = spec.max_batch or 1024
        self._batches = 0
        self._texts = 0
        self._swept = 0

    def load(self, report: Report) -> dict[str, Any]:
        if self._backend is None:
            self._backend = load_backend(self._spec, report)
        threading.Thread(target=self._tokenise, args=(self._backend,), name="tokenise", daemon=True).start()
        threading.Thread(target=self._compute, args=(self._backend,), name="compute", daemon=True).start()
        return self._backend.info

    def submit(self, request_id: int, request: Request, emit: Emit) -> None:
        assert self._backend is not None
        self._backend.check(request)
        self._queue.add(new_job(request_id, request, emit))

    def cancel(self, request_id: int) -> None:
        job = self._queue.cancel(request_id)
        if job is not None:
            job.emit.done()

    def stats(self) -> dict[str, float]:
        running, waiting = self._queue.running, self._queue.waiting
        if not running and not waiting and self._texts != self._swept:
            self._swept = self._texts
            give_back()
        return {
            "num_requests_running": running,
            "num_requests_waiting": waiting,
            "batches_total": self._batches,
            "batch_texts_total": self._texts,
        }

    # The tokeniser thread

    def _tokenise(self, backend: Backend) -> None:
        while True:
            job, start, stop = self._queue.next_slice()
            try:
                found = backend.tokenise(job.request, start, stop)
            except ApiError as error:
                self._fail(job, error)
            except Exception:
                log.exception("tokenising failed")
                self._fail(job, ApiError(500, "The model's tokeniser failed on this request."))
            else:
                self._accept(job, found)

    def _accept(self, job: Job, found: list[Tokens]) -> None:
        if not isinstance(job.request, TokenizeRequest):
            return self._queue.put(job, found)
        job.token_ids += [list(tokens.ids) for tokens in found]
        if len(job.token_ids) < job.count:
            return self._queue.more(job, len(found))
        if self._queue.close(job):
            job.emit(TokenLists(job.token_ids))
            job.emit.done()
        return None

    # The model thread

    def _compute(self, backend: Backend) -> None:
        while True:
            turn = self._queue.next_turn(backend.batch_tokens, self._max_items)
            for batch in cut(turn, backend.batch_tokens, backend.waste_tokens, self._max_items):
                self._run(backend, batch)

    def _run(self, backend: Backend, batch: list[Item]) -> None:
        """Compute a batch and answer the requests that it completes. One that fails is tried again text by text."""
        batch = [item for item in batch if item.job.open]
        if not batch:
            return
        self._begin(batch)
        try:
            output = backend.forward([item.tokens for item in batch])
        except DeviceLost:
            raise
        except Exception:
            if len(batch) > 1:
                log.warning("a batch of %d failed; each of its texts is tried alone", len(batch), exc_info=True)
                for item in batch:
                    self._run(backend, [item])
            else:
                log.exception("a text failed")
                self._fail(batch[0].job, _failed(batch[0]))
            return
        extras = output.extras or [None] * len(batch)
        for item, row, extra in zip(batch, output.rows, extras, strict=True):
            self._store(backend, item, row, extra)

    def _begin(self, batch: list[Item]) -> None:
        now = time.monotonic()
        self._batches += 1
        self._texts += len(batch)
        batch[0].job.batch_sizes.append(len(batch))
        for item in batch:
            if item.job.queue_seconds is None:
                item.job.queue_seconds = now - item.job.arrived

    def _store(self, backend: Backend, item: Item, row: Rows, extra: Extra | None) -> None:
        job = item.job
        if not np.isfinite(row).all():
            return self._fail(job, _failed(item))
        if job.store(item.index, row, extra) and self._queue.close(job):
            job.emit(backend.finish(job.request, job.output, job.work))
            job.emit.done()
        return None

    def _fail(self, job: Job, error: ApiError) -> None:
        if self._queue.close(job):
            job.emit.fail(error)


def _failed(item: Item) -> ApiError:
    name = f"{field_of(item.job.request)}[{item.index}]"
    message = f"The model failed on {name} ({item.length} tokens)."
    return ApiError(500, message, param=name, code="model_failed", retry=False)
