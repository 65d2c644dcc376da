"""What the bare paths do otherwise than OpenAI, so that the scripts of ZLAI's page run as they are written.

1. A message may lack its role: its client library drops it. After an assistant's unanswered call it is the tool's
   answer, else it is the user's.
2. A picture's URL may be base64 without ``data:`` before it.
3. Every streamed delta has a string ``content``, the first and the last too.
4. A call streams as the raw text that the model writes; the last chunk then has the whole call and the finish reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quintet_chat.api.chat_request import Message
from quintet_chat.api.chunks import ChunkWriter, call_of
from quintet_chat.api.reading import Reading
from quintet_chat.protocol import Delta, Finished
from quintet_chat.tools.base import CallArguments, CallInput, CallStart, Piece, Reasoning


def with_roles(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with the roles that were left out, and tool answers tied to the calls that they answer."""
    pending: list[str] = []
    result = []
    for message in messages:
        role = message.role or ("tool" if pending and message.content is not None else "user")
        update: dict[str, Any] = {"role": role}
        if role == "tool":
            call = message.tool_call_id or (pending[0] if pending else "")
            update["tool_call_id"] = call
            pending = [each for each in pending if each != call]
        else:
            pending = [call.id for call in message.tool_calls or []]
        result.append(message.model_copy(update=update))
    return result


class ZlaiChunkWriter(ChunkWriter):
    """Streams a chat answer as points 3 and 4 say."""

    def __init__(self, head: dict[str, Any], reading: Reading, choices: int, *, obfuscates: bool = False) -> None:
        super().__init__(head, reading, choices, obfuscates=obfuscates)
        self._calls = [_Calls() for _ in range(choices)]

    def text(self, index: int, delta: Delta) -> list[bytes]:
        written = self._written(index, self.reader(index).read(delta))
        return [self.chunk(index, written, delta)] if any(written.values()) or delta.logprobs else []

    def last(self, finished: Finished) -> list[bytes]:
        written = self._written(finished.index, self.reader(finished.index).close())
        if calls := self._calls[finished.index].whole:
            written["tool_calls"] = calls
        return [self.chunk(finished.index, written, reason=self.reason(finished))]

    def _written(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The delta of ``pieces``: calls are text, and put together aside."""
        self._calls[index].read(pieces)
        written: dict[str, Any] = {"content": self.reader(index).raw}
        if thought := "".join(piece.text for piece in pieces if isinstance(piece, Reasoning)):
            written["reasoning_content"] = thought
        return written


class _Calls:
    """The calls of one choice, put together from their pieces."""

    def __init__(self) -> None:
        self.whole: list[dict[str, Any]] = []

    def read(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, CallStart):
                self.whole.append(call_of(piece))
            elif isinstance(piece, CallArguments):
                self.whole[piece.index]["function"]["arguments"] += piece.text
            elif isinstance(piece, CallInput):
                self.whole[piece.index]["custom"]["input"] += piece.text
