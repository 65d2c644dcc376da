"""A chat answer put together from its events, for clients that want it whole."""

from __future__ import annotations

from openai.types.chat import (
    ChatCompletionMessage,
    ChatCompletionMessageCustomToolCall,
    ChatCompletionMessageFunctionToolCall,
)
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_message_custom_tool_call import Custom
from openai.types.chat.chat_completion_message_function_tool_call import Function

from quintet_chat.api.finish import finish_reason
from quintet_chat.api.logprobs import chat_logprobs
from quintet_chat.api.reading import Reading
from quintet_chat.protocol import Delta, Event, Finished, TokenLogprob
from quintet_chat.tools.base import CallStart, Piece, Reasoning, Text


class ChatAnswer:
    """Collects ``choices`` choices."""

    def __init__(self, reading: Reading, choices: int) -> None:
        self._choices = [_ChoiceBuilder(index, reading) for index in range(choices)]

    def add(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._choices[event.index].add(event)
        elif isinstance(event, Finished):
            self._choices[event.index].finish(event)

    def choices(self) -> list[Choice]:
        return [choice.build() for choice in self._choices]

    @property
    def reasoning_tokens(self) -> int:
        return sum(choice.reader.reasoning_tokens for choice in self._choices)


class _ChoiceBuilder:
    def __init__(self, index: int, reading: Reading) -> None:
        self._index = index
        self.reader = reading.reader()
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ChatCompletionMessageFunctionToolCall | ChatCompletionMessageCustomToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        self._finished = Finished(index, "stop")

    def add(self, delta: Delta) -> None:
        self._logprobs += delta.logprobs
        for piece in self.reader.read(delta):
            self._take(piece)

    def finish(self, finished: Finished) -> None:
        self._finished = finished
        for piece in self.reader.close():
            self._take(piece)

    def build(self) -> Choice:
        """The content is null when the answer is calls alone."""
        text = "".join(self._texts)
        message = ChatCompletionMessage(role="assistant", content=(text or None) if self._calls else text, refusal=None)
        if self._thoughts:
            message.reasoning_content = "".join(self._thoughts)  # type: ignore[attr-defined]
        if self._calls:
            message.tool_calls = list(self._calls)
        logprobs = ChoiceLogprobs(content=chat_logprobs(self._logprobs), refusal=None) if self._logprobs else None
        reason = finish_reason(self._finished.reason, self.reader.called)
        return Choice(index=self._index, message=message, finish_reason=reason, logprobs=logprobs)

    def _take(self, piece: Piece) -> None:
        if isinstance(piece, Text):
            self._texts.append(piece.text)
        elif isinstance(piece, Reasoning):
            self._thoughts.append(piece.text)
        elif isinstance(piece, CallStart):
            self._calls.append(_call(piece))
        else:
            call = self._calls[piece.index]
            if isinstance(call, ChatCompletionMessageFunctionToolCall):
                call.function.arguments += piece.text
            else:
                call.custom.input += piece.text


def _call(start: CallStart) -> ChatCompletionMessageFunctionToolCall | ChatCompletionMessageCustomToolCall:
    """A call without what is given to it."""
    if start.is_custom:
        custom = Custom(name=start.name, input="")
        return ChatCompletionMessageCustomToolCall(id=start.id, type="custom", custom=custom)
    function = Function(name=start.name, arguments="")
    return ChatCompletionMessageFunctionToolCall(id=start.id, type="function", function=function)
