"""A chat answer put together from its events, for clients that want it whole."""

from __future__ import annotations

from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_message_function_tool_call import Function

from quintet_chat.api.finish import finish_reason
from quintet_chat.api.logprobs import chat_logprobs
from quintet_chat.api.tool_plan import ToolPlan
from quintet_chat.protocol import Accepted, Event, Finished, Started, TokenLogprob
from quintet_chat.tools.base import CallArguments, CallStart, Text


class ChatAnswer:
    """Collects ``choices`` choices."""

    def __init__(self, plan: ToolPlan, choices: int) -> None:
        self._choices = [_ChoiceBuilder(index, plan) for index in range(choices)]

    def add(self, event: Event) -> None:
        if isinstance(event, (Accepted, Started)):
            return
        choice = self._choices[event.index]
        if isinstance(event, Finished):
            choice.finished = event
        else:
            choice.texts.append(event.text)
            choice.logprobs += event.logprobs

    def choices(self) -> list[Choice]:
        return [choice.build() for choice in self._choices]


class _ChoiceBuilder:
    def __init__(self, index: int, plan: ToolPlan) -> None:
        self._index = index
        self._parser = plan.parser()
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finished = Finished(index, "stop")

    def build(self) -> Choice:
        content, calls = self._parsed()
        message = ChatCompletionMessage(role="assistant", content=content, refusal=None)
        if calls:
            message.tool_calls = list(calls)
        logprobs = ChoiceLogprobs(content=chat_logprobs(self.logprobs), refusal=None) if self.logprobs else None
        reason = finish_reason(self.finished.reason, bool(calls))
        return Choice(index=self._index, message=message, finish_reason=reason, logprobs=logprobs)

    def _parsed(self) -> tuple[str | None, list[ChatCompletionMessageFunctionToolCall]]:
        """The content, null when the answer is calls alone, and the calls."""
        text = "".join(self.texts)
        if self._parser is None:
            return text, []
        content = ""
        calls: list[ChatCompletionMessageFunctionToolCall] = []
        for piece in [*self._parser.feed(text), *self._parser.close()]:
            if isinstance(piece, Text):
                content += piece.text
            elif isinstance(piece, CallStart):
                function = Function(name=piece.name, arguments="")
                calls.append(ChatCompletionMessageFunctionToolCall(id=piece.id, type="function", function=function))
            elif isinstance(piece, CallArguments):
                calls[piece.index].function.arguments += piece.text
        return (content or None) if calls else content, calls
