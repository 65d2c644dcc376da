"""The service's side of a worker: start the process, know its state, hand it requests, restart it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar, cast

import msgspec

from quintet_common.errors import LOADING, ApiError
from quintet_common.models_yml import ModelSpec, idle_seconds
from quintet_common.worker import protocol
from quintet_common.worker.environment import worker_environment
from quintet_common.worker.failures import Failures, named_once

log = logging.getLogger("quintet")
EventT = TypeVar("EventT")

COMEBACK_SECONDS = 30.0
"""How long a request waits for a model that is woken, or that died and is on its way back."""

FIRST_BACKOFF, LAST_BACKOFF = 0.5, 60.0
"""Seconds before a dead worker is started again: doubled at every failed start, up to the last."""

_RESTARTED = "the model's process ended and is restarted"

DEATHS = 5
"""So often the process may end while it loads a model that was never ready; then it is not started again."""


class State(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    IDLE = "idle"
    """Unloaded after the time of ``keep``; the next request loads it."""
    STOPPED = "stopped"


class Job(Generic[EventT]):
    """One request in a worker: iterate its events inside ``async with``; leaving early cancels it.

    Iteration raises ApiError when the request failed, 503 when the worker died. With ``max_ahead`` the engine is told
    to rest while so many events wait to be iterated.
    """

    def __init__(self, worker: Worker[EventT], job_id: int, max_ahead: int | None = None) -> None:
        self._worker = worker
        self._id = job_id
        self._max_ahead = max_ahead
        self._held = False
        self._events: asyncio.Queue[EventT | protocol.Done] = asyncio.Queue()
        self.finished = False

    def put(self, event: EventT | protocol.Done) -> None:
        self._events.put_nowait(event)
        if self._max_ahead is not None and not self._held and self._events.qsize() >= self._max_ahead:
            self._hold(True)

    def _hold(self, held: bool) -> None:
        self._held = held
        self._worker.hold(self._id, held)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._worker.release(self._id)

    def __aiter__(self) -> AsyncIterator[EventT]:
        return self

    async def __anext__(self) -> EventT:
        if self.finished:
            raise StopAsyncIteration
        event = await self._events.get()
        if self._held and self._events.empty():
            self._hold(False)
        if not isinstance(event, protocol.Done):
            return event
        self.finished = True
        if event.error is not None:
            raise event.error.as_api_error()
        raise StopAsyncIteration


class _Connection(asyncio.Protocol):
    """One life of the worker process, as seen from its socket."""

    def __init__(self, worker: Worker[Any]) -> None:
        self._worker = worker
        self._frames = protocol.Frames()
        self._decode = msgspec.msgpack.Decoder(protocol.FromWorker).decode
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its base class

    def data_received(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            self._worker.receive(self._decode(payload))

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, message: protocol.ToWorker) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(protocol.frame(message))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class Worker(Generic[EventT]):
    """One model of a service and the process that runs it.

    ``factory`` names the function that makes the engine from a ModelSpec, ``package.module:function``; ``event_type``
    is the msgspec type of its events.
    """

    def __init__(self, spec: ModelSpec, factory: str, event_type: Any) -> None:
        self.spec = spec
        self.state = State.LOADING
        self.progress = 0.0
        self.note = "starting"
        self.info: dict[str, Any] = {}
        self.stats: dict[str, float] = {}
        self.restarts = 0
        self.created = int(time.time())
        self.pid: int | None = None
        self._factory = factory
        self._decode_event = msgspec.msgpack.Decoder(event_type).decode
        self._connection: _Connection | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._jobs: dict[int, Job[EventT]] = {}
        self._free = asyncio.Event()
        self._free.set()
        self._next_id = 0
        self._last_used = time.monotonic()
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._woken = False
        self._was_ready = False
        self._deaths = 0
        self._permanent = False
        self._failures = Failures(spec.id)
        self._task: asyncio.Task[None] | None = None

    # Requests

    async def submit(self, request: Any, max_ahead: int | None = None) -> Job[EventT]:
        """Hand a request to the model. One that was unloaded, or that has died, is waited for; a first start is not.

        ``max_ahead`` is how many events may wait for a client that does not keep up; None for requests of few events.

        Raises ApiError 503 when there is none.
        """
        self._last_used = time.monotonic()
        if self.state is State.IDLE:
            self._woken = True
            self._wake.set()
        if (self._woken or self._was_ready) and self.state is not State.READY:
            # Not wait_for: this Python's takes no notice of a cancel in the moment in which the wait is over.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMEBACK_SECONDS):
                    await self.until(State.READY, State.FAILED, State.STOPPED)
        if self.state is not State.READY or self._connection is None:
            raise self.unavailable()
        try:
            body = protocol.encode_body(request)
        except OverflowError:
            raise ApiError(400, "The request has a number of more than 64 bits.") from None
        self._next_id += 1
        job: Job[EventT] = Job(self, self._next_id, max_ahead)
        self._jobs[self._next_id] = job
        self._free.clear()
        self._connection.send(protocol.Submit(self._next_id, body))
        return job

    def release(self, job_id: int) -> None:
        """The client needs this job no more; one that still runs is cancelled in the worker."""
        job = self._forget(job_id)
        self._last_used = time.monotonic()
        if job is not None and self._connection is not None:
            self._connection.send(protocol.Cancel(job_id))

    def _forget(self, job_id: int) -> Job[EventT] | None:
        job = self._jobs.pop(job_id, None)
        if not self._jobs:
            self._free.set()
        return job

    def hold(self, job_id: int, held: bool) -> None:
        """Let a job that still runs rest, or go on."""
        if job_id in self._jobs and self._connection is not None:
            self._connection.send(protocol.Hold(job_id, held))

    @property
    def sampling(self) -> dict[str, Any]:
        """What a request gets that leaves it to the server: of the model's own settings, and of models.yml before."""
        return self.info.get("sampling", {}) | msgspec.to_builtins(self.spec.sampling)  # type: ignore[no-any-return]

    @property
    def in_flight(self) -> int:
        return len(self._jobs)

    @property
    def given_up(self) -> bool:
        """Whether the model failed for what does not pass, and is not tried again."""
        return self.state is State.FAILED and (self._permanent or self._deaths >= DEATHS)

    def unavailable(self) -> ApiError:
        """Why there is no answer now, as the client should read it."""
        if self.state is State.FAILED:
            reason, again = named_once(self.note, self.spec.id), not self.given_up
            message = f"The model {self.spec.id!r} failed to load: {reason}"
            return ApiError(
                503, message, code="model_failed", retry_after=30 if again else None, retry=None if again else False
            )
        percent = f"{self.progress:.0%}".replace("%", " %")
        message = f"The model {self.spec.id!r} is loading ({percent}, {self.note}). Try again in a moment."
        return ApiError(503, message, code=LOADING, retry_after=2)

    # Life

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"worker {self.spec.id}")

    async def stop(self, grace: float = 0.0) -> None:
        """End the process; its memory really comes back. Requests that run have ``grace`` seconds to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._free.wait()
        self._fail_jobs(f"The model {self.spec.id!r} was unloaded during this request.")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._end_process()
        self._set(State.STOPPED)

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            self._permanent = False
            try:
                was_ready = await self._live()
            except OSError as error:  # no process or descriptor is to be had now
                log.error("%s: its process cannot be started: %s", self.spec.id, error)
                was_ready = False
            if self.state is State.IDLE:
                await self._wake.wait()
                self._wake.clear()
                continue
            if self._permanent or self._hopeless():
                return
            backoff = FIRST_BACKOFF if was_ready else min(backoff * 2, LAST_BACKOFF)
            if self.state is not State.FAILED:
                self.note = _RESTARTED
            self._failures.tell_next(backoff)
            self.restarts += 1
            await asyncio.sleep(backoff)

    def _hopeless(self) -> bool:
        """Whether the process has ended without a word while it loaded, too often to try again."""
        if self._was_ready or self.state is not State.LOADING:
            return False
        self._deaths += 1
        if self._deaths < DEATHS:
            return False
        self.note = f"its process ended {DEATHS} times while the model was loading; the service's log may say why"
        self._fail()
        return True

    async def _live(self) -> bool:
        """One life of the process, from its start until its socket closes; whether the model was ready at its end."""
        loop = asyncio.get_running_loop()
        if self.state is not State.FAILED:
            self.progress, self.note = 0.0, self.note if self.restarts else "starting"
            self._set(State.LOADING)
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "quintet_common.worker",
                str(theirs.fileno()),
                self._factory,
                self.spec.id,  # for people who read the process list
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env={**worker_environment(), **os.environ},
            )
        finally:
            theirs.close()
        self.pid = self._process.pid
        _, connection = await loop.create_connection(lambda: _Connection(self), sock=ours)
        self._connection = connection
        connection.send(protocol.Load(msgspec.to_builtins(self.spec)))
        watch = asyncio.create_task(self._unload_when_idle())
        try:
            await connection.lost
            died = self.state is State.READY
            if died:  # requests wait from now on, not from when all of it is gone
                self.note = _RESTARTED
                self._set(State.LOADING)
            return died
        finally:
            watch.cancel()
            self._connection = None
            await self._end_process()
            self._fail_jobs(f"The process of model {self.spec.id!r} ended during this request.")

    async def _unload_when_idle(self) -> None:
        limit = idle_seconds(self.spec.keep)
        while limit is not None:
            await asyncio.sleep(max(0.05, limit - (time.monotonic() - self._last_used)))
            if self.state is State.READY and not self._jobs and time.monotonic() - self._last_used >= limit:
                log.info("%s: idle for %.0f s, unloaded", self.spec.id, limit)
                self._woken = False
                self.note = "unloaded; the next request loads it"
                self._set(State.IDLE)
                self._hang_up()
                return

    async def _end_process(self) -> None:
        process, self._process, self.pid = self._process, None, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()  # a model process has nothing to save
        await process.wait()

    def _fail_jobs(self, reason: str) -> None:
        error = protocol.RequestError(503, reason, code="worker_died", retry_after=1)
        jobs, self._jobs = self._jobs, {}
        self._free.set()
        self.stats = {}
        for job_id, job in jobs.items():
            job.put(protocol.Done(job_id, error))

    # Messages

    def receive(self, message: protocol.FromWorker) -> None:
        if isinstance(message, protocol.Event):
            if job := self._jobs.get(message.id):
                job.put(self._decode_event(message.body))
        elif isinstance(message, protocol.Done):
            if job := self._forget(message.id):
                job.put(message)
        elif isinstance(message, protocol.Stats):
            self.stats = message.values
        elif isinstance(message, protocol.Progress):
            self.progress = message.fraction
            if self.state is not State.FAILED:  # while it is tried again, why it failed says more
                self.note = message.note
        elif isinstance(message, protocol.Ready):
            self.info, self.progress, self.note = message.info, 1.0, ""
            self._last_used = time.monotonic()
            self._was_ready = True
            self._failures.forget()
            self._set(State.READY)
        else:
            self.note, self._permanent = message.reason, message.permanent
            self._fail()

    def _fail(self) -> None:
        self._failures.tell(self.note)
        self._set(State.FAILED)
        self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _set(self, state: State) -> None:
        self.state = state
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, *states: State) -> None:
        """Wait until the model is in one of ``states``."""
        while self.state not in states:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
