"""One request in a worker, from the API's side: its events, counted as they pass."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from quintet_common.worker.process import Worker

from quintet_chat.metrics import Meter
from quintet_chat.protocol import Accepted, Event, Generate


async def generate(worker: Worker[Event], request: Generate, meter: Meter) -> AsyncGenerator[Event, None]:
    """The events of ``request``. Closing the generator cancels the request in the worker."""
    with meter:
        async with await worker.submit(request) as job:
            async for event in job:
                meter.count(event)
                yield event


async def accepted(events: AsyncGenerator[Event, None]) -> Accepted:
    """Wait until the worker has taken the request, so that what it refuses keeps its HTTP status."""
    event = await anext(events)
    assert isinstance(event, Accepted)
    return event
