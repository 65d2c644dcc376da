"""Scheduling of pictures onto one model: a queue, batches of requests that want the same work, and cancels.

A batch is what queued while the last one ran: there is no timer, so a lone request waits for nothing. Every picture has
a generator of its own, so that a seed gives the same picture alone or in company.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from quintet_common.errors import ApiError
from quintet_common.memory import give_back, return_large_blocks
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Emit, LoadError, Report

from quintet_vision.backends.base import Backend, Interrupted, Item, Plan, Render, out_of_memory
from quintet_vision.canvas import bounded, encode, read_image, read_mask
from quintet_vision.protocol import Accepted, Draw, Finished, Preview, Started

log = logging.getLogger("quintet.vision")

EMBEDDED = "emoji-64"

_OFTEN = 32 << 20
"""Bytes: smaller blocks come again in every step. To give each back and get it again takes 6 % of a small edit."""

_IDLE_SECONDS = 1.0
_LARGE = 1_000_000
"""Pixels of a picture after which memory is given back at once."""

_REFERENCE = 4_000_000
"""Pixels of a further picture of an edit that are kept in memory, at most."""


@dataclass(eq=False)
class Job:
    """One request on its way."""

    id: int
    request: Draw
    plan: Plan
    emit: Emit
    seed: int
    arrived: float = field(default_factory=time.monotonic)
    left: int = 0
    """Pictures not yet finished."""
    started: bool = False
    cancelled: bool = False
    image: Image.Image | None = None
    mask: Image.Image | None = None
    references: tuple[Image.Image, ...] = ()

    def read_pictures(self) -> None:
        """Decode what the client sent, once, when the work begins."""
        if self.request.image is not None and self.image is None:
            self.image = read_image(self.request.image)
        if self.request.mask is not None and self.mask is None:
            self.mask = read_mask(self.request.mask)
        if not self.references:  # models scale them to a megapixel or so
            self.references = tuple(bounded(read_image(data), _REFERENCE) for data in self.request.references)


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture of a job: what batches are made of."""

    job: Job
    index: int

    @property
    def seed(self) -> int:
        return (self.job.seed + self.index) % 2**63

    def item(self) -> Item:
        job, request = self.job, self.job.request
        size = job.plan.size
        return Item(request.prompt, request.negative_prompt, self.seed, size, job.image, job.mask, job.references)


def preview_steps(steps: int, previews: int) -> dict[int, int]:
    """After which step comes which preview: evenly spread, none after the last step."""
    due: dict[int, int] = {}
    for number in range(previews):
        step = round(steps * (number + 1) / (previews + 1))
        if 1 <= step < steps and step not in due:
            due[step] = len(due)
    return due


class ImageEngine:
    request_type = Draw

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._backend: Backend
        self._queue: deque[Shot] = deque()
        self._jobs: dict[int, Job] = {}
        self._changed = threading.Condition()
        self._batch_seconds = 5.0
        # Encoding goes on beside the next batch. One thread keeps a picture's previews before the picture itself.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def load(self, report: Report) -> dict[str, Any]:
        return_large_blocks(_OFTEN)
        self._backend = _create_backend(self._spec, report)
        threading.Thread(target=self._run, name="draw", daemon=True).start()
        return self._backend.info

    def submit(self, request_id: int, request: Draw, emit: Emit) -> None:
        plan = self._backend.plan(request)
        seed = random.getrandbits(32) if request.seed is None else request.seed
        job = Job(request_id, request, plan, emit, seed, left=request.n)
        usage = self._backend.usage(request, plan)
        with self._changed:
            if self._waiting() >= self._spec.max_waiting:
                message = f"{self._spec.max_waiting} requests are waiting already."
                raise ApiError(429, message, retry_after=self._seconds_to_wait())
            emit(
                Accepted(
                    *plan.size,
                    *plan.native,
                    steps=plan.steps_taken,
                    text_tokens=usage.text_tokens,
                    image_tokens=usage.image_tokens,
                    output_tokens=usage.output_tokens,
                    revised_prompt=self._backend.revised_prompt(request.prompt),
                )
            )
            self._jobs[request_id] = job
            self._queue.extend(Shot(job, index) for index in range(request.n))
            self._changed.notify()

    def cancel(self, request_id: int) -> None:
        with self._changed:
            if job := self._jobs.get(request_id):
                self._end(job, job.emit.done)

    def stats(self) -> dict[str, float]:
        with self._changed:
            waiting = self._waiting()
            running = len(self._jobs) - waiting
        return {"num_requests_running": running, "num_requests_waiting": waiting, **self._backend.stats}

    def _seconds_to_wait(self) -> int:
        """Until there should be room again: a batch's time, as the last ones took it."""
        return max(1, min(120, round(self._batch_seconds)))

    def _waiting(self) -> int:
        return sum(not job.started for job in self._jobs.values())

    def _end(self, job: Job, finish: Callable[[], None]) -> None:
        """Take ``job`` off the books and answer it. Held: the condition."""
        job.cancelled = True
        self._jobs.pop(job.id, None)
        self._queue = deque(shot for shot in self._queue if shot.job is not job)
        finish()

    # The drawing thread

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            error = self._try(batch)
            if error is None:
                continue
            if len(batch) == 1:
                self._fail(batch[0].job, error)
                continue
            # Whatever spoils a batch may spoil only its own request. The error goes first: it holds the batch's memory.
            del error
            for shot in batch:
                if not shot.job.cancelled and (own := self._try([shot])) is not None:
                    self._fail(shot.job, own)

    def _try(self, batch: list[Shot]) -> Exception | None:
        """Draw ``batch`` and return what went wrong."""
        began = time.monotonic()
        try:
            self._draw(batch)
        except Interrupted:
            return None
        except Exception as error:
            return error
        self._batch_seconds += (time.monotonic() - began - self._batch_seconds) / 4
        return None

    def _next_batch(self) -> list[Shot]:
        """The oldest picture and those that can be drawn with it, oldest first."""
        with self._changed:
            tidy = False
            while not self._queue:
                if not self._changed.wait(None if tidy else _IDLE_SECONDS):
                    give_back()  # what the last pictures left behind; after each one it would cost two in a hundred
                    tidy = True
            plan = self._queue[0].job.plan
            batch = [shot for shot in self._queue if shot.job.plan == plan][
                : 1 if plan.alone else self._backend.max_batch
            ]
            taken = set(batch)
            self._queue = deque(shot for shot in self._queue if shot not in taken)
            for job in {shot.job for shot in batch}:
                if not job.started:
                    job.started = True
                    job.emit(Started(time.monotonic() - job.arrived))
            return batch

    def _draw(self, batch: list[Shot]) -> None:
        plan = batch[0].job.plan
        due = [preview_steps(plan.steps_taken, shot.job.request.previews) for shot in batch]

        def on_step(step: int, render: Render) -> list[int]:
            gone = [place for place, shot in enumerate(batch) if shot.job.cancelled]
            if len(gone) == len(batch):
                raise Interrupted
            seen = [place for place, each in enumerate(due) if step in each and place not in gone]
            for place, picture in zip(seen, render(seen) if seen else (), strict=True):
                self._encoder.submit(self._send_preview, batch[place], due[place][step], picture)
            return gone

        for shot in batch:
            shot.job.read_pictures()
        pictures = self._backend.draw(plan, [shot.item() for shot in batch], on_step)
        wanted = [each for each in zip(batch, pictures, strict=True) if not each[0].job.cancelled]
        for place, (shot, picture) in enumerate(wanted, 1):
            self._encoder.submit(self._send, shot, picture, len(batch) if place == len(wanted) else 0)

    def _fail(self, job: Job, error: Exception) -> None:
        """Answer a request that cannot be drawn; the model goes on with the others."""
        if not isinstance(error, ApiError):
            if _is_out_of_memory(error):
                error = out_of_memory(job.plan.size)
            else:
                log.error("drawing failed", exc_info=error)
                error = ApiError(500, "The model failed on this request; the service's log has the details.")
        failure = error
        with self._changed:
            if not job.cancelled:
                self._end(job, lambda: job.emit.fail(failure))

    # The encoding thread

    def _send_preview(self, shot: Shot, number: int, picture: Image.Image) -> None:
        if not shot.job.cancelled:
            request = shot.job.request
            shot.job.emit(Preview(shot.index, number, encode(picture, request.format, request.compression)))

    def _send(self, shot: Shot, picture: Image.Image, batch_size: int) -> None:
        job = shot.job
        try:
            if not job.cancelled:
                data = encode(picture, job.request.format, job.request.compression)
                job.emit(Finished(shot.index, data, shot.seed, batch_size))
        except Exception as error:
            self._fail(job, error)
        with self._changed:
            job.left -= 1
            if not job.left and not job.cancelled:
                self._end(job, job.emit.done)
        if batch_size and picture.width * picture.height >= _LARGE:
            give_back()  # it leaves many times its size behind


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA has a type of its own for it; the CPU's allocator raises a RuntimeError that says so."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "not enough memory" in str(error)


def _create_backend(spec: ModelSpec, report: Report) -> Backend:
    """Backends are imported here and only the one that is needed: each import costs seconds and memory."""
    report(0.02, "importing torch")
    if spec.embedded is None:
        from quintet_vision.backends.diffusers import DiffusersBackend

        return DiffusersBackend(spec, report)
    if spec.embedded != EMBEDDED:
        raise LoadError(f"embedded:{spec.embedded} is not known; the embedded image model is embedded:{EMBEDDED}.")
    from quintet_vision.backends.emoji64 import Emoji64Backend

    return Emoji64Backend(spec, report)
