"""Coroutines that callbacks drive, without a task: most requests wait once, for their answer.

What asks for the current task, as ``asyncio.timeout`` does, has to be run by ``in_task`` there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Driven:
    """A coroutine that may wait for everything that is made of asyncio's futures.

    ``done(driven, error)`` is called once when it has ended.
    """

    __slots__ = ("_coroutine", "_done", "_future")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Driven, BaseException | None], None]
    ) -> None:
        self._coroutine: Coroutine[Any, Any, Any] | None = coroutine
        self._done = done
        self._future: asyncio.Future[Any] | None = None

    def step(self, _: object = None) -> None:
        """Run it until it waits for something. Called once to start it; later what it waited for calls this."""
        coroutine = self._coroutine
        if coroutine is None:
            return
        try:
            future = coroutine.send(None)
        except StopIteration:
            self._coroutine = None
            self._done(self, None)
        except BaseException as error:
            self._coroutine = None
            self._done(self, error)
        else:
            self._future = future
            if future is None:  # a bare yield: go on in the next turn of the loop
                asyncio.get_running_loop().call_soon(self.step)
            else:
                future._asyncio_future_blocking = False  # what a task does to a future that it waits for
                future.add_done_callback(self.step)

    def cancel(self, **_: object) -> None:
        """Give the coroutine up; ``done`` is not called. Takes what a task's ``cancel`` takes."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            if self._future is not None:
                self._future.remove_done_callback(self.step)
            coroutine.close()


async def in_task(coroutine: Coroutine[Any, Any, T]) -> T:
    """What ``coroutine`` returns, which gets a task of its own."""
    return await asyncio.get_running_loop().create_task(coroutine)
