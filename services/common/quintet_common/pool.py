"""The models of one service: which there are, which one a request means, and how they change with models.yml."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from quintet_common.entries import ModelSpec
from quintet_common.errors import ApiError, model_not_found
from quintet_common.worker.process import State, Worker

EventT = TypeVar("EventT")


def no_model(kind: str | None) -> ApiError:
    return ApiError(404, f"No model of kind {kind!r} is served here.", param="model", code="model_not_found")


def wrong_kind(spec: ModelSpec, kind: str) -> ApiError:
    message = f"The model {spec.id!r} is of kind {spec.kind!r}; this path needs one of kind {kind!r}."
    return ApiError(404, message, param="model", code="model_not_found")


class ModelPool(Generic[EventT]):
    """One worker per model. ``factory`` and ``event_type`` are as for Worker."""

    def __init__(self, specs: list[ModelSpec], factory: str, event_type: Any) -> None:
        self._factory = factory
        self._event_type = event_type
        self._workers: dict[str, Worker[EventT]] = {}
        self._specs = specs
        self._changing = asyncio.Lock()
        self._ending: list[Worker[EventT]] = []
        """Of models that were changed or removed, while requests in them end."""
        self.leaving = False
        """Whether the service is about to end: it still answers, and says that others should be asked."""

    def __iter__(self) -> Iterator[Worker[EventT]]:
        return iter(self._workers.values())

    def start(self) -> None:
        for spec in self._specs:
            self._add(spec).start()

    def leave(self) -> None:
        self.leaving = True

    async def close(self) -> None:
        workers = [*self, *self._ending]
        self._workers.clear()  # first of all: a change that goes on meanwhile starts none of them
        await asyncio.gather(*(worker.stop() for worker in workers))

    async def apply(self, specs: list[ModelSpec], grace: float = 0.0) -> None:
        """Make the running models those of ``specs``: those are loaded anew whose process would run otherwise,
        and those that were given up are tried once more.

        One call after the other, in their order. A model that changes is known all the time, and loads once the memory
        of the old one is free; requests that run in that one have ``grace`` seconds to end.
        """
        async with self._changing:
            wanted = {spec.id: spec for spec in specs}
            gone = []
            for worker in self:
                spec = wanted.get(worker.spec.id)
                if spec is not None and spec.for_worker == worker.spec.for_worker and not worker.given_up:
                    worker.spec = spec
                else:
                    gone.append(worker)
            for worker in gone:
                del self._workers[worker.spec.id]
            new = [self._add(spec) for spec in specs if spec.id not in self._workers]
            self._ending = gone
            await asyncio.gather(*(worker.stop(grace) for worker in gone))
            self._ending = []
            for worker in new:
                if worker in self:  # else the pool was closed meanwhile
                    worker.start()

    def find(self, name: str | None, kind: str | None = None) -> Worker[EventT]:
        """The model with this id or alias; without a name, the default of ``kind``.

        Raises ApiError 404 ``model_not_found``, also for a model of another kind. Without a default the first model of
        the kind answers.
        """
        if name:
            found = [worker for worker in self if name in worker.spec.names]
        else:
            found = [worker for worker in self if kind is None or worker.spec.kind == kind]
            found.sort(key=lambda worker: not worker.spec.default)
        if not found:
            raise self.not_found(name) if name else no_model(kind)
        if kind is not None and found[0].spec.kind != kind:
            raise wrong_kind(found[0].spec, kind)
        return found[0]

    def not_found(self, name: str) -> ApiError:
        """404, with the name that may have been meant."""
        return model_not_found(name, (each for worker in self for each in worker.spec.names))

    @property
    def ready(self) -> bool:
        """Whether every model can answer, now or after being woken, and this will stay so."""
        return not self.leaving and all(worker.state in (State.READY, State.IDLE) for worker in self)

    def _add(self, spec: ModelSpec) -> Worker[EventT]:
        worker: Worker[EventT] = Worker(spec, self._factory, self._event_type)
        self._workers[spec.id] = worker
        return worker
