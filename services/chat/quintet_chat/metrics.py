"""What is counted of chat requests, under vLLM's names, beside what every service counts."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple, Self

from prometheus_client import Counter, Histogram
from quintet_common.errors import ApiError
from quintet_common.metrics import PROMPT_TOKENS, QUEUE, SECONDS, registry
from quintet_common.observation import Observation

from quintet_chat.protocol import Accepted, Delta, Event, Started

_LABELS = ["service", "model"]

GENERATION_TOKENS = Counter("quintet_generation_tokens", "Tokens generated", _LABELS, registry=registry)
FIRST_TOKEN = Histogram(
    "quintet_time_to_first_token_seconds",
    "From the request's arrival to its first token",
    _LABELS,
    buckets=SECONDS,
    registry=registry,
)
INTER_TOKEN = Histogram(
    "quintet_inter_token_latency_seconds",
    "Between two tokens of a choice",
    _LABELS,
    buckets=(0.001, 0.0025, *SECONDS),
    registry=registry,
)
SUCCESS = Counter(
    "quintet_request_success",
    "Choices that ended: stop and length by themselves, abort because the client left",
    [*_LABELS, "finished_reason"],
    registry=registry,
)


class _Children(NamedTuple):
    """The children of one model's labels; looking them up costs more than counting."""

    prompt_tokens: Counter
    generation_tokens: Counter
    queue: Histogram
    first_token: Histogram
    inter_token: Histogram


@cache
def _children(service: str, model: str) -> _Children:
    metrics = (PROMPT_TOKENS, GENERATION_TOKENS, QUEUE, FIRST_TOKEN, INTER_TOKEN)
    return _Children(*(metric.labels(service, model) for metric in metrics))  # type: ignore[arg-type]


class Meter:
    """Counts the events of one request as they pass; a context that knows how the request ended."""

    def __init__(self, seen: Observation, choices: int) -> None:
        self._seen = seen
        self._unfinished = choices
        self._children = _children(seen.service, seen.model)
        self._last: dict[int, float] = {}
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._children.generation_tokens.inc(self.completion_tokens)
        self._seen.use("prompt_tokens", self.prompt_tokens)
        self._seen.use("completion_tokens", self.completion_tokens)
        if kind is not None and not issubclass(kind, ApiError):
            self._end("abort", self._unfinished)

    def count(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._count_delta(event)
        elif isinstance(event, Accepted):
            self.prompt_tokens = event.prompt_tokens
            self._children.prompt_tokens.inc(event.prompt_tokens)
        elif isinstance(event, Started):
            self.cached_tokens = event.cached_tokens
            self._children.queue.observe(event.queue_seconds)
        else:
            self._unfinished -= 1
            self._end(event.reason, 1)

    def _count_delta(self, delta: Delta) -> None:
        now = time.perf_counter()
        self.completion_tokens += delta.tokens
        last = self._last.get(delta.index)
        if last is not None and delta.tokens:
            self._children.inter_token.observe((now - last) / delta.tokens)
        elif not self._last:
            self._children.first_token.observe(now - self._seen.started)
            self._seen.mark_first_output()
        self._last[delta.index] = now

    def _end(self, reason: str, choices: int) -> None:
        SUCCESS.labels(self._seen.service, self._seen.model, reason).inc(choices)
