"""Several things at once: works of which none may fail alone, and streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")


class _End:
    """Marks the end of one stream in the queue, with what ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all ``works``. The first failure cancels the rest; none of them runs any more when this returns or raises."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(streams: Sequence[AsyncIterator[ItemT]]) -> AsyncGenerator[ItemT, None]:
    """The items of all ``streams``. The first failure ends everything; closing stops reading all of them."""
    queue: asyncio.Queue[ItemT | _End] = asyncio.Queue()

    async def read(stream: AsyncIterator[ItemT]) -> None:
        error: Exception | None = None
        try:
            async for item in stream:
                queue.put_nowait(item)
        except Exception as failure:
            error = failure
        queue.put_nowait(_End(error))

    tasks = [asyncio.create_task(read(stream)) for stream in streams]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if not isinstance(item, _End):
                yield item
                continue
            running -= 1
            if item.error is not None:
                raise item.error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
