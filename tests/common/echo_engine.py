"""A real engine for tests of the worker protocol: it sends back the words of the request, one event each."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import msgspec
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Emit, LoadError, Report


class Request(msgspec.Struct):
    text: str
    delay: float = 0.0


class EchoEngine:
    request_type = Request

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._cancelled: set[int] = set()
        self._held: set[int] = set()
        self._running = 0
        self._sent = 0
        self._ended = 0

    def load(self, report: Report) -> dict[str, Any]:
        report(0.5, "half way")
        time.sleep(self._spec.engine_args.get("load_seconds", 0))
        if reason := self._spec.engine_args.get("refuse"):
            raise LoadError(reason)
        if reason := self._spec.engine_args.get("stumble"):  # unlike a refusal, this is tried again
            raise RuntimeError(reason)
        if self._spec.engine_args.get("die"):
            os._exit(1)
        return {"engine": "echo"}

    def submit(self, request_id: int, request: Request, emit: Emit) -> None:
        if not request.text:
            raise ApiError(400, "Nothing to say.", param="text")
        self._running += 1
        threading.Thread(target=self._run, args=(request_id, request, emit), daemon=True).start()

    def cancel(self, request_id: int) -> None:
        self._cancelled.add(request_id)

    def hold(self, request_id: int, held: bool) -> None:
        (self._held.add if held else self._held.discard)(request_id)

    def stats(self) -> dict[str, float]:
        return {
            "num_requests_running": self._running,
            "num_requests_waiting": 0,
            "ended": self._ended,
            "sent": self._sent,
        }

    def _run(self, request_id: int, request: Request, emit: Emit) -> None:
        for word in request.text.split():
            if word == "crash":
                raise RuntimeError("asked to")
            while request_id in self._held and request_id not in self._cancelled:
                time.sleep(0.001)
            if request_id in self._cancelled:
                break
            emit({"word": word})
            self._sent += 1
            time.sleep(request.delay)
        self._running -= 1
        self._ended += 1
        emit.done()


def create_engine(spec: ModelSpec) -> EchoEngine:
    return EchoEngine(spec)
