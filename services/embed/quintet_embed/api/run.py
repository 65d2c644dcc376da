"""From a request to the one event of its answer."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, model_validator
from quintet_common.disconnect import or_disconnect
from quintet_common.errors import ApiError
from quintet_common.models_yml import Kind
from quintet_common.observation import observation_of
from quintet_common.pool import ModelPool
from quintet_common.worker.process import Worker

from quintet_embed.metrics import count_work
from quintet_embed.protocol import Event, TokenLists
from quintet_embed.protocol import Request as WorkerRequest

EventT = TypeVar("EventT", bound=Event)


class Body(BaseModel):
    """A request's body: unknown fields are ignored, ``null`` means absent, and no type is taken for another."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def worker_for(request: Request, model: str | None, kind: Kind | None) -> Worker[Event]:
    """The model that a request means. Raises ApiError 404."""
    pool: ModelPool[Event] = request.app.state.pool
    worker = pool.find(model, kind)
    observation_of(request.scope).model = worker.spec.id
    return worker


async def answer(request: Request, worker: Worker[Event], message: WorkerRequest, event_type: type[EventT]) -> EventT:
    """The event that ``worker`` answers ``message`` with; a client that leaves cancels it. Raises ApiError."""
    event = await or_disconnect(request, _only_event(worker, message))
    assert isinstance(event, event_type)
    observation_of(request.scope).mark_first_output()
    if not isinstance(event, TokenLists):
        count_work(worker.spec.id, event.work)
    return event


async def _only_event(worker: Worker[Event], message: WorkerRequest) -> Event:
    async with await worker.submit(message) as job:
        events = [event async for event in job]
    if not events:
        raise ApiError(500, "The model ended this request without an answer.")
    return events[0]
