"""The chunks of a streamed chat answer, as OpenAI sends them.

A choice begins with its role and an empty content, goes on with texts alone, and ends with an empty delta and the
finish reason. A call begins with its id, its name and empty arguments, which then grow. Absent fields are absent, never
null.
"""

from __future__ import annotations

from typing import Any

from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta, ChoiceLogprobs
from openai.types.completion_usage import CompletionUsage
from quintet_common import sse

from quintet_chat.api.finish import FinishReason, finish_reason
from quintet_chat.api.logprobs import chat_logprobs
from quintet_chat.api.obfuscation import obfuscation
from quintet_chat.api.reading import ChoiceReader, Reading
from quintet_chat.protocol import Delta, Finished
from quintet_chat.tools.base import CallInput, CallStart, Piece, Reasoning, Text


class ChunkWriter:
    """Turns the events of one request into server-sent events of the strict dialect.

    ``head`` has the fields that all chunks share: id, object, created, model; ``usage: None`` too when the client asked
    for the usage at the end.
    """

    def __init__(self, head: dict[str, Any], reading: Reading, choices: int, *, obfuscates: bool = False) -> None:
        self._head = head
        self._obfuscates = obfuscates
        self._readers = [reading.reader() for _ in range(choices)]

    def first(self, index: int) -> bytes:
        return self.chunk(index, {"role": "assistant", "content": ""})

    def text(self, index: int, delta: Delta) -> list[bytes]:
        """The chunks of a piece of text; its logprobs go with the first of them."""
        deltas = [self.delta_of(piece) for piece in self.reader(index).read(delta)]
        if not deltas and not delta.logprobs:
            return []
        first, *rest = deltas or [{"content": ""}]
        return [self.chunk(index, first, delta), *(self.chunk(index, each) for each in rest)]

    def last(self, finished: Finished) -> list[bytes]:
        rest = [self.chunk(finished.index, self.delta_of(piece)) for piece in self.reader(finished.index).close()]
        return [*rest, self.chunk(finished.index, {}, reason=self.reason(finished))]

    def usage(self, usage: CompletionUsage) -> bytes:
        return sse.event(ChatCompletionChunk(**self._head | {"choices": [], "usage": usage}))

    def reader(self, index: int) -> ChoiceReader:
        return self._readers[index]

    @property
    def reasoning_tokens(self) -> int:
        return sum(reader.reasoning_tokens for reader in self._readers)

    def reason(self, finished: Finished) -> FinishReason:
        return finish_reason(finished.reason, self.reader(finished.index).called)

    def chunk(
        self, index: int, delta: dict[str, Any], source: Delta | None = None, reason: FinishReason | None = None
    ) -> bytes:
        # The SDK has a type for the deltas of functions alone.
        choice = Choice(index=index, delta=ChoiceDelta.construct(**delta), finish_reason=reason)
        if source is not None and source.logprobs:
            choice.logprobs = ChoiceLogprobs(content=chat_logprobs(source.logprobs))
        chunk = ChatCompletionChunk(**self._head, choices=[choice])
        if self._obfuscates:
            chunk.obfuscation = obfuscation(len(str(delta)))
        return sse.event(chunk)

    def delta_of(self, piece: Piece) -> dict[str, Any]:
        if isinstance(piece, Text):
            return {"content": piece.text}
        if isinstance(piece, Reasoning):
            return {"reasoning_content": piece.text}
        if isinstance(piece, CallStart):
            return {"tool_calls": [call_of(piece)]}
        if isinstance(piece, CallInput):
            return {"tool_calls": [{"index": piece.index, "custom": {"input": piece.text}}]}
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def call_of(start: CallStart) -> dict[str, Any]:
    """The delta that begins a call, without what is given to it."""
    what = {"custom": {"name": start.name, "input": ""}}
    if not start.is_custom:
        what = {"function": {"name": start.name, "arguments": ""}}
    return {"index": start.index, "id": start.id, "type": next(iter(what)), **what}
