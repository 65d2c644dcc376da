"""A response as it grows: what a model thinks, says and calls becomes items, and each step an event of OpenAI's."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Literal

from openai.types import responses as sdk
from openai.types.responses import response_output_text
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_reasoning_item import Content
from openai.types.responses.response_text_delta_event import Logprob, LogprobTopLogprob
from openai.types.responses.response_text_done_event import Logprob as DoneLogprob
from pydantic import BaseModel
from quintet_common.errors import ApiError

from quintet_chat.api.reading import Reading
from quintet_chat.protocol import Delta, Finished, TokenLogprob
from quintet_chat.tools.base import CallArguments, CallInput, CallStart, Piece, Reasoning, Text

Events = Iterator[BaseModel]
Item = sdk.ResponseReasoningItem | sdk.ResponseOutputMessage | sdk.ResponseFunctionToolCall | sdk.ResponseCustomToolCall
Status = Literal["in_progress", "completed", "incomplete"]
_CALLS = (sdk.ResponseFunctionToolCall, sdk.ResponseCustomToolCall)


class ResponseWriter:
    """Grows ``response``, which is empty and in progress, and yields the events of each step.

    Every event has the next ``sequence_number``, from 0 on. When the last has come, ``response`` is whole.
    """

    def __init__(self, response: sdk.Response, reading: Reading) -> None:
        self.response = response
        self.reader = reading.reader()
        self._number = -1
        self._logprobs: list[TokenLogprob] = []
        """Of the message that is open."""
        self._waiting: list[TokenLogprob] = []
        """Of tokens whose text is held back, or has just come."""

    def begin(self) -> Events:
        for make, kind in ((sdk.ResponseCreatedEvent, "created"), (sdk.ResponseInProgressEvent, "in_progress")):
            yield make(type=f"response.{kind}", response=self.response, sequence_number=self._next())  # type: ignore[arg-type]

    def add(self, delta: Delta) -> Events:
        thoughts = self.reader.reasoning_tokens
        pieces = self.reader.read(delta)
        if self.reader.reasoning_tokens == thoughts:
            self._waiting += delta.logprobs
        for piece in pieces:
            yield from self._write(piece)
        if self.response.output and isinstance(self.response.output[-1], _CALLS):
            self._waiting = []

    def finish(self, finished: Finished) -> Events:
        """Close what is open. The usage must be in ``response`` before ``end``."""
        for piece in self.reader.close():
            yield from self._write(piece)
        self._logprobs += self._waiting  # of the last tokens, if there is no text of them
        if not self.response.output:
            yield from self._open(Text(""))
        is_whole = finished.reason == "stop"
        yield from self._close("completed" if is_whole else "incomplete")
        self.response.status = "completed" if is_whole else "incomplete"
        if not is_whole:
            self.response.incomplete_details = IncompleteDetails(reason="max_output_tokens")

    def end(self) -> Events:
        if self.response.status == "completed":
            yield sdk.ResponseCompletedEvent(
                type="response.completed", response=self.response, sequence_number=self._next()
            )
        else:
            yield sdk.ResponseIncompleteEvent(
                type="response.incomplete", response=self.response, sequence_number=self._next()
            )

    def fail(self, error: ApiError) -> Events:
        """The end of a response that could not be finished."""
        self.response.status = "failed"
        self.response.error = sdk.ResponseError(code="server_error", message=error.message)
        yield sdk.ResponseFailedEvent(type="response.failed", response=self.response, sequence_number=self._next())

    def _next(self) -> int:
        self._number += 1
        return self._number

    @property
    def _place(self) -> dict[str, Any]:
        """What the events of the open item have in common."""
        return {
            "output_index": len(self.response.output) - 1,
            "item_id": self.response.output[-1].id,
            "sequence_number": self._next(),
        }

    def _write(self, piece: Piece) -> Events:
        item = self.response.output[-1] if self.response.output else None
        if not _continues(item, piece):
            if item is not None:
                yield from self._close("completed")
            yield from self._open(piece)
            item = self.response.output[-1]
        if isinstance(piece, CallStart) or not piece.text:
            return
        if isinstance(item, sdk.ResponseFunctionToolCall):
            item.arguments += piece.text
            yield sdk.ResponseFunctionCallArgumentsDeltaEvent(
                type="response.function_call_arguments.delta", delta=piece.text, **self._place
            )
        elif isinstance(item, sdk.ResponseCustomToolCall):
            item.input += piece.text
            yield sdk.ResponseCustomToolCallInputDeltaEvent(
                type="response.custom_tool_call_input.delta", delta=piece.text, **self._place
            )
        elif isinstance(item, sdk.ResponseReasoningItem):
            _thought_of(item).text += piece.text
            yield sdk.ResponseReasoningTextDeltaEvent(
                type="response.reasoning_text.delta", content_index=0, delta=piece.text, **self._place
            )
        elif isinstance(item, sdk.ResponseOutputMessage):
            text_of(item).text += piece.text
            logprobs, self._waiting = self._waiting, []
            self._logprobs += logprobs
            yield sdk.ResponseTextDeltaEvent(
                type="response.output_text.delta",
                content_index=0,
                delta=piece.text,
                logprobs=[_logprob(each) for each in logprobs],
                **self._place,
            )

    def _open(self, piece: Piece) -> Events:
        """A new item of the piece's kind, first without what is in it."""
        item, part = _new_item(piece)
        self.response.output.append(item)
        yield sdk.ResponseOutputItemAddedEvent(
            type="response.output_item.added",
            item=item.model_copy(deep=True),
            output_index=len(self.response.output) - 1,
            sequence_number=self._next(),
        )
        if part is None:
            return
        yield sdk.ResponseContentPartAddedEvent(
            type="response.content_part.added", content_index=0, part=_plain(part), **self._place
        )
        item.content = [part]  # type: ignore[union-attr]

    def _close(self, status: Status) -> Events:
        item = self.response.output[-1]
        if isinstance(item, sdk.ResponseFunctionToolCall):
            yield sdk.ResponseFunctionCallArgumentsDoneEvent(
                type="response.function_call_arguments.done",
                arguments=item.arguments,
                **{"name": item.name} | self._place,  # of which not every version of the SDK knows
            )
            item.status = status
        elif isinstance(item, sdk.ResponseCustomToolCall):
            yield sdk.ResponseCustomToolCallInputDoneEvent(
                type="response.custom_tool_call_input.done", input=item.input, **self._place
            )
        elif isinstance(item, sdk.ResponseReasoningItem):
            thought = _thought_of(item)
            yield sdk.ResponseReasoningTextDoneEvent(
                type="response.reasoning_text.done", content_index=0, text=thought.text, **self._place
            )
            yield self._part_done(thought)
            item.status = status
        elif isinstance(item, sdk.ResponseOutputMessage):
            yield from self._close_message(item)
            item.status = status
        yield sdk.ResponseOutputItemDoneEvent(
            type="response.output_item.done",
            item=item,
            output_index=len(self.response.output) - 1,
            sequence_number=self._next(),
        )

    def _close_message(self, item: sdk.ResponseOutputMessage) -> Events:
        part = text_of(item)
        done = [DoneLogprob(**_logprob(each).model_dump(exclude_unset=True)) for each in self._logprobs]
        yield sdk.ResponseTextDoneEvent(
            type="response.output_text.done", content_index=0, text=part.text, logprobs=done, **self._place
        )
        if self._logprobs:
            part.logprobs = [_text_logprob(each) for each in self._logprobs]
            self._logprobs = []
        yield self._part_done(part)

    def _part_done(self, part: Any) -> BaseModel:
        return sdk.ResponseContentPartDoneEvent(
            type="response.content_part.done", content_index=0, part=_plain(part), **self._place
        )


def _continues(item: Any, piece: Piece) -> bool:
    """Whether a piece belongs to the item that is open."""
    if isinstance(piece, CallArguments | CallInput):
        return True
    if isinstance(piece, Text):
        return isinstance(item, sdk.ResponseOutputMessage)
    return isinstance(piece, Reasoning) and isinstance(item, sdk.ResponseReasoningItem)


def _new_item(piece: Piece) -> tuple[Item, Any]:
    """An item without content, and the part that its content will be."""
    if isinstance(piece, CallStart) and piece.is_custom:
        custom = sdk.ResponseCustomToolCall(
            id=new_id("ctc"), type="custom_tool_call", call_id=piece.id, name=piece.name, input=""
        )
        return custom, None
    if isinstance(piece, CallStart):
        call = sdk.ResponseFunctionToolCall(
            id=new_id("fc"),
            type="function_call",
            call_id=piece.id,
            name=piece.name,
            arguments="",
            status="in_progress",
        )
        return call, None
    if isinstance(piece, Reasoning):
        thoughts = sdk.ResponseReasoningItem(
            id=new_id("rs"), type="reasoning", summary=[], content=[], status="in_progress"
        )
        return thoughts, Content(type="reasoning_text", text="")
    message = sdk.ResponseOutputMessage(
        id=new_id("msg"), type="message", role="assistant", content=[], status="in_progress"
    )
    return message, sdk.ResponseOutputText(type="output_text", text="", annotations=[])


def _plain(part: BaseModel) -> Any:
    """A part as plain data, since events have types of their own for it."""
    return part.model_dump(exclude_unset=True)


def text_of(item: sdk.ResponseOutputMessage) -> sdk.ResponseOutputText:
    part = item.content[0]
    assert isinstance(part, sdk.ResponseOutputText)
    return part


def _thought_of(item: sdk.ResponseReasoningItem) -> Content:
    assert item.content
    return item.content[0]


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"


def _logprob(token: TokenLogprob) -> Logprob:
    top = [LogprobTopLogprob(token=text, logprob=value) for text, _, value in token.top]
    return Logprob(token=token.token, logprob=token.logprob, top_logprobs=top)


def _text_logprob(token: TokenLogprob) -> response_output_text.Logprob:
    top = [
        response_output_text.LogprobTopLogprob(token=text, bytes=raw, logprob=value) for text, raw, value in token.top
    ]
    return response_output_text.Logprob(token=token.token, bytes=token.bytes, logprob=token.logprob, top_logprobs=top)
