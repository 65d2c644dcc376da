"""``ppocr``: a model that reads the text in pictures, Chinese and English, and answers with it line by line.

It is RapidOCR's PP-OCR with the weights of its wheel: it reads, it does not reason. It answers the last message of the
user that has pictures. Requests take turns, a picture each, because one picture alone keeps the CPU busy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from quintet_common.errors import ApiError, bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Emit, LoadError, Report

from quintet_chat.backends.ppocr_answer import Answer, Words, count_tokens
from quintet_chat.protocol import Accepted, Generate, Started

log = logging.getLogger("quintet.chat")

PICTURE_TOKENS = 256
"""What usage counts for a picture: a fixed price, because the model itself has no tokens."""


class Reader(Protocol):
    def lines(self, picture: bytes) -> Iterator[str]:
        """The text of one encoded picture, line by line from top to bottom."""


class OcrEngine:
    """Reads for one request at a time, in turns. More than ``max_waiting`` open requests are refused with 429.

    Usage counts a CJK character, a word or a mark as one token, and PICTURE_TOKENS for each picture that is read.
    """

    def __init__(self, spec: ModelSpec, reader: Reader | None = None) -> None:
        self._spec = spec
        self._reader = reader
        self._turns: deque[_Reading] = deque()
        self._open: dict[int, _Reading] = {}
        self._changed = threading.Condition()

    @property
    def request_type(self) -> type[Generate]:
        return Generate

    def load(self, report: Report) -> dict[str, Any]:
        report(0.1, "loading PP-OCR")
        if self._reader is None:
            self._reader = _load_reader()
        threading.Thread(target=self._run, args=(self._reader,), name="ocr", daemon=True).start()
        return {"engine": "rapidocr", "reads": "the text in pictures, Chinese and English; does not reason"}

    def submit(self, request_id: int, request: Generate, emit: Emit) -> None:
        _refuse(request)
        reading = _Reading(request_id, request, emit)
        with self._changed:
            if len(self._open) > self._spec.max_waiting:
                message = (
                    f"The model {self._spec.id!r} has {self._spec.max_waiting} requests waiting, which is its limit."
                )
                raise ApiError(429, message, code="queue_full", retry_after=2)
            self._open[request_id] = reading
            self._turns.append(reading)
            emit(Accepted(reading.prompt_tokens))
            self._changed.notify()

    def cancel(self, request_id: int) -> None:
        if reading := self._open.get(request_id):
            reading.cancelled = True

    def stats(self) -> dict[str, float]:
        open_requests = len(self._open)
        return {"num_requests_running": min(1, open_requests), "num_requests_waiting": max(0, open_requests - 1)}

    def _run(self, reader: Reader) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._turns)
                reading = self._turns.popleft()
            self._take_turn(reading, reader)

    def _take_turn(self, reading: _Reading, reader: Reader) -> None:
        """A picture that cannot be read costs its own request only."""
        failure = None
        try:
            if reading.take_turn(reader):
                with self._changed:
                    self._turns.append(reading)
                return
        except Exception:
            log.exception("reading a picture failed")
            failure = ApiError(500, "The model failed on this picture; the service's log has the details.")
        with self._changed:
            del self._open[reading.id]
        if failure is not None:
            reading.emit.fail(failure)
        else:
            reading.emit.done()


class _Reading:
    """A request on its way."""

    def __init__(self, request_id: int, request: Generate, emit: Emit) -> None:
        self.id = request_id
        self.emit = emit
        self.cancelled = False
        self._arrived = time.monotonic()
        texts, pictures = _last_pictures(request.messages or [])
        self._pictures = [request.images[index] for index in pictures]
        self._read = 0
        self._words = Words.of(texts)
        self._answer = Answer(emit, request.sampling.max_tokens, request.sampling.stop)
        self.prompt_tokens = count_tokens(texts) + PICTURE_TOKENS * len(self._pictures)

    def take_turn(self, reader: Reader) -> bool:
        """Read the next picture; False when there is nothing left to do."""
        if not self._read:
            self.emit(Started(time.monotonic() - self._arrived))
        if not self._pictures:
            self._answer.say(self._words.help)
        elif not self.cancelled:
            self._read_picture(reader)
        if not (self.cancelled or self._answer.ended) and self._read < len(self._pictures):
            return True
        if not self.cancelled:
            self._answer.finish()
        return False

    def _read_picture(self, reader: Reader) -> None:
        picture = self._pictures[self._read]
        self._read += 1
        if len(self._pictures) > 1:
            self._answer.say(self._words.label.format(self._read))
        found = False
        for line in reader.lines(picture):
            if self.cancelled or self._answer.ended:
                return
            found = True
            self._answer.say(line)
        if not found:
            self._answer.say(self._words.nothing)


def _refuse(request: Generate) -> None:
    """Raise ApiError 400 for what this model cannot do, naming the field."""
    sampling = request.sampling
    reasons = {
        "prompt": request.messages is None,
        "tools": bool(request.tools),
        "response_format": request.grammar is not None,
        "logprobs": sampling.logprobs is not None,
        "logit_bias": bool(sampling.logit_bias),
        "n": request.n > 1,
    }
    for field, is_asked in reasons.items():
        if is_asked:
            text = (
                f"{field}: this model reads the text in pictures of a conversation, in one way; it generates nothing."
            )
            raise bad_request(text, field, "unsupported_parameter")


def _last_pictures(messages: list[dict[str, Any]]) -> tuple[str, list[int]]:
    """The text of the user's last message, and the pictures of the last message that has any."""
    users = [message for message in messages if message["role"] == "user"]
    text = _text(users[-1]) if users else ""
    for message in reversed(users):
        if isinstance(message["content"], list):
            return text, [part["image"] for part in message["content"] if part["type"] == "image"]
    return text, []


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _load_reader() -> Reader:
    try:
        from quintet_chat.backends.ppocr_reader import PaddleReader
    except ImportError as error:
        raise LoadError(f"ppocr needs the packages rapidocr and onnxruntime: {error}.") from None
    return PaddleReader()
