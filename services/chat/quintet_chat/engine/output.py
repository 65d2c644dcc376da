"""The way out: a thread of its own turns sampled tokens into events, so that the model thread never waits for text."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from quintet_common.errors import ApiError

from quintet_chat.engine.request import Request, Sequence
from quintet_chat.engine.sampler import Choice, Logprob
from quintet_chat.engine.text import Detokenizer, StopFinder, TokenText
from quintet_chat.protocol import Delta, Finished, TokenLogprob

Reason = Literal["stop", "length"]
CONTEXT_TOKENS = 6
"""How many tokens of the prompt the text of a continuation is decoded behind."""


class Sampled(NamedTuple):
    """One step of one sequence. ``reason`` is set on its last."""

    sequence: Sequence
    choice: Choice
    reason: Reason | None


class Ended(NamedTuple):
    """A request that takes no more steps: cancelled, or refused with ``error``."""

    request: Request
    error: ApiError | None = None


Item = Sampled | Ended


class Output:
    """Receives items in order from any thread; ``run`` belongs to a thread of its own.

    ``on_end`` is called with every request exactly once, before the service is told: it may send the next one at once.
    """

    def __init__(self, tokenizer: Any, on_end: Callable[[Request], None]) -> None:
        self._items: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        self._tokenizer = tokenizer
        self._token_text = TokenText(tokenizer)
        self._special = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._on_end = on_end
        self._writers: dict[Sequence, _Writer] = {}

    def put(self, items: list[Item]) -> None:
        self._items.put(items)

    def close(self) -> None:
        self._items.put(None)

    def run(self) -> None:
        """Handle items until closed."""
        while (items := self._items.get()) is not None:
            for item in items:
                if isinstance(item, Sampled):
                    self._write(item)
                else:
                    self._end(item.request, item.error)

    def _write(self, item: Sampled) -> None:
        sequence, request = item.sequence, item.sequence.request
        if request.cancelled:
            # What the scheduler has finished already it can no longer drop and end.
            if item.reason is not None:
                self._end(request, None)
            return
        if sequence.stopped:
            return  # the step was under way when the stop string was found
        writer = self._writers.get(sequence)
        if writer is None:
            writer = self._writers[sequence] = self._writer(sequence)
        ended = writer.write(item)
        if ended is None:
            return
        sequence.stopped = True
        del self._writers[sequence]
        request.emit(Finished(sequence.index, ended))
        request.open_choices -= 1
        if not request.open_choices:
            self._end(request, None)

    def _end(self, request: Request, error: ApiError | None) -> None:
        if request.ended:
            return
        request.ended = True
        for sequence in request.sequences:
            self._writers.pop(sequence, None)
        self._on_end(request)
        if error is None:
            request.emit.done()
        else:
            request.emit.fail(error)

    def _writer(self, sequence: Sequence) -> _Writer:
        body = sequence.request.body
        continued = body.messages is None or body.assistant_prefix
        before = sequence.request.prompt[-CONTEXT_TOKENS:] if continued else []
        hidden = {index for index, token in self._special.items() if token not in body.marks}
        return _Writer(sequence, Detokenizer(self._decode, before), hidden, self._token_text)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class _Writer:
    """One choice's tokens on their way to Deltas."""

    def __init__(self, sequence: Sequence, detokenizer: Detokenizer, hidden: set[int], token_text: TokenText) -> None:
        self._index = sequence.index
        self._emit = sequence.request.emit
        self._detokenizer = detokenizer
        self._stops = StopFinder(sequence.request.sampling.stop)
        self._silent = sequence.request.stop_ids
        self._hidden = hidden
        self._token_text = token_text
        self._tokens = 0
        """Generated and not yet reported."""
        self._logprobs: list[tuple[int, TokenLogprob]] = []
        """Not yet reported, each with where its text begins in the choice's text."""
        self._decoded = 0
        self._sent = 0

    def write(self, item: Sampled) -> Reason | None:
        """Take one token; send what is certain; return why the choice ends, if it does now."""
        token, reason = item.choice.token, item.reason
        self._tokens += 1
        ends_silently = reason == "stop" and token in self._silent
        text = ""
        if not ends_silently:
            if item.choice.logprob is not None:
                self._logprobs.append((self._decoded, self._describe(token, item.choice.logprob)))
            if token not in self._hidden:
                text = self._detokenizer.push(token)
        if reason is not None:
            text += self._detokenizer.flush()
        self._decoded += len(text)
        out = self._stops.push(text)
        if self._stops.found:
            reason = "stop"
        elif reason is not None:
            out += self._stops.flush()
        self._send(out, reason is not None)
        return reason

    def _send(self, text: str, last: bool) -> None:
        if not text and not (last and self._tokens):
            return
        self._sent += len(text)
        ready = [logprob for start, logprob in self._logprobs if start < self._sent or (last and not self._stops.found)]
        self._logprobs = self._logprobs[len(ready) :]
        self._emit(Delta(self._index, text, self._tokens, ready))
        self._tokens = 0

    def _describe(self, token: int, logprob: Logprob) -> TokenLogprob:
        top = [(*self._token_text(i), value) for i, value in zip(logprob.top_ids, logprob.top, strict=True)]
        return TokenLogprob(*self._token_text(token), logprob.chosen, top)
