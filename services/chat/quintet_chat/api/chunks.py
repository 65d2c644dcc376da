"""The chunks of a streamed chat answer, as OpenAI sends them.

A choice begins with its role and an empty content, goes on with texts alone, and ends with an empty delta and the
finish reason. A call begins with its id, its name and empty arguments, which then grow. Absent fields are absent, never
null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta, ChoiceLogprobs
from openai.types.completion_usage import CompletionUsage
from quintet_common import sse

from quintet_chat.api.finish import FinishReason, finish_reason
from quintet_chat.api.logprobs import chat_logprobs
from quintet_chat.api.tool_plan import ToolPlan
from quintet_chat.protocol import Delta, Finished
from quintet_chat.tools.base import CallStart, Parser, Piece, Text


class ChunkWriter:
    """Turns the events of one request into server-sent events of the strict dialect.

    ``head`` has the fields that all chunks share: id, object, created, model; ``usage: None`` too when the client asked
    for the usage at the end.
    """

    def __init__(self, head: dict[str, Any], plan: ToolPlan) -> None:
        self._head = head
        self._plan = plan
        self._parsers: dict[int, Parser | None] = {}
        self._called: set[int] = set()

    def first(self, index: int) -> bytes:
        return self.chunk(index, {"role": "assistant", "content": ""})

    def text(self, index: int, delta: Delta) -> list[bytes]:
        """The chunks of a piece of text; its logprobs go with the first of them."""
        deltas = [self._delta_of(piece) for piece in self.parse(index, delta.text)]
        if not deltas and not delta.logprobs:
            return []
        first, *rest = deltas or [{"content": ""}]
        return [self.chunk(index, first, delta), *(self.chunk(index, each) for each in rest)]

    def last(self, finished: Finished) -> list[bytes]:
        rest = [self.chunk(finished.index, self._delta_of(piece)) for piece in self.close(finished.index)]
        return [*rest, self.chunk(finished.index, {}, reason=self.reason(finished))]

    def usage(self, usage: CompletionUsage) -> bytes:
        return sse.event(ChatCompletionChunk(**self._head | {"choices": [], "usage": usage}))

    def parse(self, index: int, text: str) -> Sequence[Piece]:
        """The pieces that ``text`` completes; notes whether the choice has called."""
        if index not in self._parsers:
            self._parsers[index] = self._plan.parser()
        parser = self._parsers[index]
        pieces = [Text(text)] if parser is None and text else parser.feed(text) if parser else []
        if any(isinstance(piece, CallStart) for piece in pieces):
            self._called.add(index)
        return pieces

    def close(self, index: int) -> Sequence[Piece]:
        parser = self._parsers.get(index)
        return parser.close() if parser else []

    def reason(self, finished: Finished) -> FinishReason:
        return finish_reason(finished.reason, finished.index in self._called)

    def chunk(
        self, index: int, delta: dict[str, Any], source: Delta | None = None, reason: FinishReason | None = None
    ) -> bytes:
        choice = Choice(index=index, delta=ChoiceDelta(**delta), finish_reason=reason)
        if source is not None and source.logprobs:
            choice.logprobs = ChoiceLogprobs(content=chat_logprobs(source.logprobs))
        return sse.event(ChatCompletionChunk(**self._head, choices=[choice]))

    def _delta_of(self, piece: Piece) -> dict[str, Any]:
        if isinstance(piece, Text):
            return {"content": piece.text}
        if isinstance(piece, CallStart):
            function = {"name": piece.name, "arguments": ""}
            return {"tool_calls": [{"index": piece.index, "id": piece.id, "type": "function", "function": function}]}
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
