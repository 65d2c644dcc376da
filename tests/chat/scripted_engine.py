"""An engine whose answers the request itself dictates, so that tests of the API know what the worker says.

``chat_template_kwargs`` has: ``pieces`` (texts, one Delta each; a list of lists: one per choice), ``reason``, ``delay``
between pieces in seconds, ``refuse`` (an ApiError instead of Accepted), ``fail_after`` (pieces, then an ApiError), and
``show``: answer with the request itself as JSON; ``opened``: the prompt has begun the model's thinking. Text
completions continue a prompt ``a|b`` with its pieces ``a``, then ``b``; the prompts ``refuse`` and ``fail`` are refused
and fail.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
from quintet_chat.protocol import Accepted, Delta, Finished, Generate, Started, TokenLogprob
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Emit, Report


class ScriptedEngine:
    request_type = Generate

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._cancelled: set[int] = set()
        self._ended = {"cancelled_requests": 0.0, "whole_requests": 0.0}
        self._running = 0

    def load(self, report: Report) -> dict[str, Any]:
        report(0.5, "half way")
        return {"engine": "scripted", **self._spec.engine_args.get("info", {})}

    def submit(self, request_id: int, request: Generate, emit: Emit) -> None:
        script = request.template_args
        if refuse := script.get("refuse"):
            raise ApiError(refuse["status"], refuse["message"], param=refuse.get("param"), code=refuse.get("code"))
        if request.prompt == "refuse":
            raise ApiError(400, "No.", param="prompt")
        self._running += 1
        threading.Thread(target=self._run, args=(request_id, request, emit), daemon=True).start()

    def cancel(self, request_id: int) -> None:
        self._cancelled.add(request_id)

    def stats(self) -> dict[str, float]:
        return {"num_requests_running": self._running, "num_requests_waiting": 0, **self._ended}

    def _run(self, request_id: int, request: Generate, emit: Emit) -> None:
        script = request.template_args
        text = request.prompt if isinstance(request.prompt, str) else "".join(map(chr, request.prompt or []))
        echoed = text if request.echo else None
        emit(Accepted(7, prompt_text=echoed, thinking=bool(script.get("opened"))))
        emit(Started(0.001, 3))
        said = self._say(request_id, request, emit, _pieces(request, text))
        self._running -= 1
        self._ended["whole_requests" if said else "cancelled_requests"] += 1
        if said and ("fail_after" in script or text == "fail"):
            return emit.fail(ApiError(500, "The graphics card melted.", code="melted"))
        if said:
            for index in range(request.n):
                emit(Finished(index, script.get("reason", "stop")))
        return emit.done()

    def _say(self, request_id: int, request: Generate, emit: Emit, choices: list[list[str]]) -> bool:
        """False when the request was cancelled on the way."""
        limit = request.sampling.max_tokens
        for position in range(max(map(len, choices))):
            for index, pieces in enumerate(choices):
                if request_id in self._cancelled:
                    return False
                if position < len(pieces) and (limit is None or position < limit):
                    emit(Delta(index, pieces[position], 1, _logprobs(request, pieces[position], index)))
            time.sleep(request.template_args.get("delay", 0))
        return True


def _pieces(request: Generate, prompt: str) -> list[list[str]]:
    script = request.template_args
    if script.get("show"):
        shown = msgspec.to_builtins(request)
        shown["images"] = [len(image) for image in request.images]
        return [[msgspec.json.encode(shown).decode()]] * request.n
    pieces = script.get("pieces", prompt.split("|") if request.messages is None else ["Hello", " there", "."])
    return pieces if pieces and isinstance(pieces[0], list) else [pieces] * request.n


def _logprobs(request: Generate, text: str, index: int) -> list[TokenLogprob]:
    if request.sampling.logprobs is None:
        return []
    top = [(text, list(text.encode()), -0.5), ("other", list(b"other"), -1.5)][: request.sampling.logprobs]
    return [TokenLogprob(text, list(text.encode()), -0.5 + index, top)]


def create_engine(spec: ModelSpec) -> ScriptedEngine:
    return ScriptedEngine(spec)
