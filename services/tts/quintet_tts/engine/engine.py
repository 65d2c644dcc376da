"""The engine of a speech worker: a few threads that speak many requests, a sentence of each at a time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from quintet_common import memory
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.threads import cpu_quota
from quintet_common.worker.host import Emit, Report

from quintet_tts import protocol
from quintet_tts.backends import Backend, Batching, loading
from quintet_tts.engine.schedule import Schedule, Task
from quintet_tts.speech.reshape import SAMPLE_RATE
from quintet_tts.speech.speaking import Speaking
from quintet_tts.voices import Catalogue

log = logging.getLogger("quintet.tts")

STREAMS = 64
"""Requests that speak at the same time, unless the model's ``max_batch`` says otherwise; each holds up to 4 MB."""

MAX_THREADS = 4
"""Each speaks over a hundred times faster than a listener hears; more would only hold more memory."""


PATIENCE = 600.0
"""Seconds for which a client may take nothing before its request is ended."""

LARGE = 8 << 20
"""Bytes: what is larger is no array of a sentence, of which every sentence needs some of 1 to 4 MB."""

POSTPONED = 1.0
"""Seconds by which each slice of a long text that is being prepared lets later and shorter requests go first."""


class SpeechEngine:
    request_type: Any = protocol.Request

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._schedule = Schedule(spec.max_batch or STREAMS, spec.max_waiting)
        self._catalogue: Catalogue
        self._backends: Mapping[str, Backend]
        self._spoke = False

    def load(self, report: Report) -> dict[str, Any]:
        memory.return_large_blocks(LARGE)
        self._catalogue, self._backends = loading.load(self._spec, report)
        self._warm_up()
        memory.give_back()
        for number in range(_threads(self._backends)):
            threading.Thread(target=self._run, name=f"speak {number}", daemon=True).start()
        voices = self._catalogue.voices
        engines = sorted({voice.engine for voice in voices if voice.available})
        return {"engine": "+".join(engines), "sample_rate": SAMPLE_RATE, "voices": len(voices)}

    def submit(self, request_id: int, request: protocol.Request, emit: Emit) -> None:
        if isinstance(request, protocol.ListVoices):
            emit(protocol.Voices(self._catalogue.voices))
            emit.done()
        else:
            self._schedule.add(Task(request_id, Speaking(request, self._catalogue, self._backends), emit))

    def cancel(self, request_id: int) -> None:
        if task := self._schedule.cancel(request_id):
            self._end(task)

    def hold(self, request_id: int, held: bool) -> None:
        self._schedule.hold(request_id, held)

    def stats(self) -> dict[str, float]:
        for task in self._schedule.abandoned(PATIENCE):
            task.emit.fail(ApiError(408, f"The sound was not taken for {PATIENCE:.0f} seconds."))
            self._end(task)
        running, waiting = self._schedule.counts()
        if self._spoke and not running + waiting:
            # Not after each answer: the next one would pay for getting the same pages again.
            self._spoke = False
            memory.give_back()
        return {"num_requests_running": running, "num_requests_waiting": waiting}

    def _warm_up(self) -> None:
        """Speak once, so that the first listener does not wait for what is set up at first use."""
        warm = protocol.Speak(text="Ready.", voice=None, format="mp3")
        for _ in Speaking(warm, self._catalogue, self._backends):
            pass

    def _run(self) -> None:
        while True:
            task = self._schedule.take()
            if not (self._step(task) and self._schedule.give_back(task)):
                self._end(task)

    def _step(self, task: Task) -> bool:
        """Speak a little of one request; False when it has ended. One that fails does not take others with it."""
        try:
            if not task.started:
                if not task.speaking.prepare():
                    task.postponed += POSTPONED
                    return True
                task.started, task.postponed = True, 0.0
                task.emit(protocol.Started(time.monotonic() - task.arrived, task.speaking.engines))
            audio = next(task.speaking, None)
        except ApiError as error:
            task.emit.fail(error)
            return False
        except Exception:
            log.exception("%s: speaking failed", self._spec.id)
            task.emit.fail(ApiError(500, "The model failed on this request; the service's log has the details."))
            return False
        if audio is None:
            return False
        task.seconds += audio.seconds
        task.emit(audio)
        return True

    def _end(self, task: Task) -> None:
        task.speaking.close()
        self._schedule.end(task)
        task.emit.done()
        self._spoke = True


def _threads(backends: Mapping[str, Backend]) -> int:
    wanted = [backend.threads for backend in backends.values() if isinstance(backend, Batching)]
    return max(1, *wanted, min(MAX_THREADS, int(os.environ.get("QUINTET_THREADS", cpu_quota()))))
