"""Coroutines that callbacks drive, without a task.

An ASGI server's ``send`` hardly ever waits. Run by hand it costs one call; as a task it would cost a switch per chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Step = Callable[[Any, BaseException | None], None]


class Driven:
    """A coroutine whose first step, ``coroutine.send(None)``, ended in waiting for ``future``.

    ``done(result, error)`` is called once when it has ended. Works with everything that waits for asyncio
    futures, which is all that ``send`` and ``receive`` of servers do.
    """

    __slots__ = ("_coroutine", "_done", "_future")

    def __init__(self, coroutine: Any, future: Any, done: Step) -> None:
        self._coroutine = coroutine
        self._done = done
        self._wait(future)

    def _wait(self, future: Any) -> None:
        self._future: asyncio.Future[Any] | None = future
        if future is None:  # a bare yield: go on in the next turn of the loop
            asyncio.get_running_loop().call_soon(self._resume, None)
        else:
            future._asyncio_future_blocking = False  # what a task does to a future that it waits for
            future.add_done_callback(self._resume)

    def _resume(self, _: object) -> None:
        coroutine = self._coroutine
        if coroutine is None:
            return
        try:
            future = coroutine.send(None)
        except StopIteration as stop:
            self._coroutine = None
            self._done(stop.value, None)
        except BaseException as error:
            self._coroutine = None
            self._done(None, error)
        else:
            self._wait(future)

    def cancel(self) -> None:
        """Give the coroutine up; ``done`` is not called."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            if self._future is not None:
                self._future.remove_done_callback(self._resume)
            coroutine.close()
