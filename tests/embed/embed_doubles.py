"""A backend for tests of the scheduling: exact, fast, and it can be held, made to fail, and asked what it was given."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from quintet_common.errors import ApiError, bad_request
from quintet_common.models_yml import ModelSpec
from quintet_embed.backends.base import DeviceLost
from quintet_embed.engine.engine import EmbedEngine
from quintet_embed.engine.job import Output, Tokens
from quintet_embed.protocol import EmbedRequest, Event, Request, Vectors, Work

POISON, NAN, LOST = 666, 667, 668
"""Token ids: a forward pass with the first fails, a row with the second is not finite, the third breaks the device."""


def quiet(fraction: float, note: str) -> None:
    """A report that nobody reads."""
    assert 0 <= fraction <= 1, note


class ArithmeticBackend:
    """The row of a text is [sum of its ids, their count]. The ids of a text are its character codes."""

    batch_tokens = 100
    waste_tokens = 10
    info: dict[str, Any] = {"engine": "arithmetic"}  # noqa: RUF012

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def check(self, request: Request) -> None:
        assert isinstance(request, EmbedRequest)
        if request.dimensions == 99:
            raise bad_request("too many", "dimensions")

    def tokenise(self, request: Request, start: int, stop: int) -> list[Tokens]:
        if isinstance(request, EmbedRequest) and request.token_ids:
            return [Tokens(ids) for ids in request.token_ids[start:stop]]
        assert isinstance(request, EmbedRequest)
        for i, text in enumerate(request.texts[start:stop]):
            if text == "too long":
                raise bad_request("too long", f"input[{start + i}]")
            if text == "boom":
                raise RuntimeError("tokeniser bug")
        return [Tokens([ord(character) for character in text]) for text in request.texts[start:stop]]

    def forward(self, batch: list[Tokens]) -> Output:
        self.entered.set()
        assert self.gate.wait(60)
        self.batches.append([len(tokens.ids) for tokens in batch])
        if any(LOST in tokens.ids for tokens in batch):
            raise DeviceLost("gone")
        if any(POISON in tokens.ids for tokens in batch):
            raise RuntimeError("poison")
        rows = [[float("nan") if NAN in t.ids else sum(t.ids), len(t.ids)] for t in batch]
        return Output(np.array(rows, np.float32))

    def finish(self, request: Request, output: Output, work: Work) -> Event:
        assert isinstance(request, EmbedRequest)
        return Vectors(output.rows.tobytes(), output.rows.shape[1], work)


class Answer:
    """Stands where Emit stands: keeps the event and the end of one request."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.error: ApiError | None = None
        self.ends = 0
        self._ended = threading.Event()

    def __call__(self, event: Any) -> None:
        assert not self.ends
        self.events.append(event)

    def done(self) -> None:
        self.ends += 1
        self._ended.set()

    def fail(self, error: ApiError) -> None:
        self.error = error
        self.done()

    def wait(self) -> Answer:
        assert self._ended.wait(60), "no end within a minute"
        return self

    @property
    def rows(self) -> list[list[float]]:
        assert self.error is None, self.error
        (event,) = self.events
        found: list[list[float]] = np.frombuffer(event.data, "<f4").reshape(-1, event.dimensions).tolist()
        return found


def spec_of(**settings: Any) -> ModelSpec:
    return ModelSpec(**{"id": "test", "kind": "embedding", "path": "embedded:test", **settings})


class Rig:
    """An engine over the arithmetic backend, with requests numbered as they come."""

    def __init__(self, **settings: Any) -> None:
        self.backend = ArithmeticBackend()
        self.engine = EmbedEngine(spec_of(**settings), self.backend)
        self.engine.load(quiet)
        self._last = 0

    def submit(self, *texts: str, ids: list[list[int]] | None = None, **fields: Any) -> Answer:
        answer = Answer()
        self._last += 1
        answer.id = self._last  # type: ignore[attr-defined]
        request = EmbedRequest(texts=list(texts), token_ids=ids or [], **fields)
        self.engine.submit(self._last, request, answer)  # type: ignore[arg-type]
        return answer

    def hold(self) -> Answer:
        """Make the model busy with a request of its own until ``release``."""
        self.backend.gate.clear()
        self.backend.entered.clear()
        answer = self.submit("x")
        assert self.backend.entered.wait(60)
        return answer

    def release(self) -> None:
        self.backend.gate.set()
