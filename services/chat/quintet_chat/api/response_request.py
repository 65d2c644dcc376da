"""The body of a ``POST /responses`` request, and the same request as a chat completion's."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from quintet_common.errors import ApiError, bad_request, missing_field

from quintet_chat.api.chat_request import (
    MAX_DEFINITION,
    MAX_MESSAGES,
    AllowedTools,
    ChatRequest,
    CustomDefinition,
    FunctionDefinition,
    InputFormat,
    JsonSchema,
    Message,
    Name,
    ResponseFormat,
    TextGrammar,
    Tool,
    ToolChoiceObject,
)
from quintet_chat.api.response_items import messages_of
from quintet_chat.api.sampling import INT64, ExtraFields, StreamOptions

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


MAX_ITEMS = MAX_MESSAGES - 1
"""Of ``input``; the instructions are one message more."""

_LOGPROBS = "message.output_text.logprobs"
_THOUGHTS = "reasoning.encrypted_content"
"""Accepted without effect: it is for sending thoughts back where none are stored, and here they come in plain text."""

Summary = Literal["auto", "concise", "detailed"]


class ResponseInputFormat(BaseModel):
    """Of a custom tool; a grammar lies flat in it."""

    model_config = _STRICT

    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: Annotated[str, Field(max_length=MAX_DEFINITION)] | None = None


class ResponseTool(BaseModel):
    """A tool; a function or a custom tool lies flat in it."""

    model_config = _STRICT

    type: str
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: ResponseInputFormat | None = None

    # Accepted without effect: every tool is known from the first, and whoever runs it may take his time.
    defer_loading: bool | None = None
    is_async: bool | None = Field(None, alias="async")

    # Refused by name when there is none but a program to call it.
    allowed_callers: list[str] | None = None


class ResponseToolChoice(BaseModel):
    model_config = _STRICT

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


class TextFormat(BaseModel):
    model_config = ConfigDict(strict=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(BaseModel):
    model_config = _STRICT

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(BaseModel):
    """The thoughts come as they are, so kinds of summaries are accepted without effect."""

    model_config = _STRICT

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None

    # Refused by name when they ask for what cannot be had here.
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


def _form_of(given: Any) -> str | None:
    """Which of its forms the input is meant to be, so that an error is about that one alone."""
    return "text" if isinstance(given, str) else "items" if isinstance(given, list) else None


Items = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_ITEMS)]
Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[Items, Tag("items")],
    Discriminator(_form_of, custom_error_type="input", custom_error_message="expected a string or a list of items"),
]


class ResponseRequest(ExtraFields):
    """What ``POST /responses`` takes. ``null`` is the same as leaving a field out."""

    model: str | None = None
    input: Input
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, str] | None = None

    # Beyond OpenAI's, which are the chat completions'.
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Accepted without effect on the answer. Built-in tools, which max_tool_calls counts, are refused.
    access_programs: Any = None
    image: Any = None
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    user: str | None = None

    # Refused by name when they ask for what cannot be had here.
    background: bool | None = None
    background_options: dict[str, Any] | None = None
    context_management: list[Any] | None = None
    conversation: Any = None
    moderation: dict[str, Any] | None = None
    previous_response_id: str | None = None
    prompt: dict[str, Any] | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None

    # Chat completions' names for what has another here: without effect they would be missed.
    max_completion_tokens: Any = None
    max_tokens: Any = None
    messages: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    verbosity: Any = None

    def refuse_unsupported(self) -> None:
        """Raise ApiError 400 that names the first field which asks for what cannot be had."""
        for field, reason in _REASONS.items():
            value = getattr(self, field)
            if value not in (None, False, "disabled", []):
                raise bad_request(f"{field}: {reason}.", field, "unsupported_parameter")
        for field, name in _NAMED_OTHERWISE.items():
            _refuse(getattr(self, field) is not None, field, f"here it is {name}")
        for index, value in enumerate(self.include or []):
            if value not in (_LOGPROBS, _THOUGHTS):
                path = f"include[{index}]"
                message = f"{path}: {value[:80]!r} cannot be had here; there are {_LOGPROBS!r} and {_THOUGHTS!r}."
                raise bad_request(message, path, "unsupported_parameter")

        if self.reasoning is not None:
            _refuse(self.reasoning.context not in (None, "auto"), "reasoning.context", "the chat template decides")
            _refuse(
                self.reasoning.mode not in (None, "standard"), "reasoning.mode", "there is one way of thinking here"
            )

    def as_chat(self) -> tuple[ChatRequest, list[str]]:
        """The same as a chat completion request, and for each of its messages where it comes from in this one.

        Raises ApiError 400 that names the field, of the chat request.
        """
        messages, paths = messages_of(self.input)
        if self.instructions is not None:
            messages.insert(0, Message(role="system", content=self.instructions))
            paths.insert(0, "instructions")
        wants_logprobs = self.top_logprobs is not None or _LOGPROBS in (self.include or [])
        chat = ChatRequest(
            model=self.model,
            messages=messages,
            stream=self.stream,
            stream_options=self.stream_options,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            **{name: getattr(self, name) for name in ExtraFields.model_fields},
            logprobs=wants_logprobs or None,
            top_logprobs=self.top_logprobs,
            tools=[_tool(tool, index) for index, tool in enumerate(self.tools or [])] or None,
            tool_choice=_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=_format(self.text),
            verbosity=self.text.verbosity if self.text else None,
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        return chat, paths


def _tool(tool: ResponseTool, index: int) -> Tool:
    if tool.type not in ("function", "custom"):
        path = f"tools[{index}].type"
        message = f"{path}: 'function' and 'custom' are served here; there is no built-in tool {tool.type[:40]!r}."
        raise bad_request(message, path, "unsupported_parameter")
    if tool.name is None:
        raise missing_field(f"tools[{index}].name")
    path, programs = f"tools[{index}]", "there are no programs here that call tools"
    _refuse("direct" not in (tool.allowed_callers or ["direct"]), f"{path}.allowed_callers", programs)
    if tool.type == "custom":
        format = None if tool.format is None else _input_format(tool.format, f"tools[{index}].format")
        return Tool(type="custom", custom=CustomDefinition(name=tool.name, description=tool.description, format=format))
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(type="function", function=function)


def _input_format(wanted: ResponseInputFormat, path: str) -> InputFormat:
    if wanted.type == "text":
        return InputFormat(type="text")
    if wanted.syntax is None:
        raise missing_field(f"{path}.syntax")
    if wanted.definition is None:
        raise missing_field(f"{path}.definition")
    return InputFormat(type="grammar", grammar=TextGrammar(syntax=wanted.syntax, definition=wanted.definition))


def _refuse(is_asked: bool, path: str, reason: str) -> None:
    if is_asked:
        raise bad_request(f"{path}: {reason}.", path, "unsupported_parameter")


def _choice(choice: str | ResponseToolChoice | None) -> Any:
    if not isinstance(choice, ResponseToolChoice):
        return choice
    if choice.type in ("function", "custom") and choice.name is not None:
        return ToolChoiceObject.model_validate({"type": choice.type, choice.type: {"name": choice.name}})
    if choice.type == "allowed_tools" and choice.mode is not None:
        tools = [_reference(tool) for tool in choice.tools or []]
        return ToolChoiceObject(type="allowed_tools", allowed_tools=AllowedTools(mode=choice.mode, tools=tools))
    return ToolChoiceObject(type="unknown")


def _reference(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool that is allowed, as chat completions name it."""
    kind = "custom" if tool.get("type") == "custom" else "function"
    return {"type": kind, kind: {"name": tool.get("name")}}


def _format(text: TextOptions | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    wanted = text.format
    if wanted.type == "json_schema" and wanted.name is None:
        raise missing_field("text.format.name")
    schema = JsonSchema.model_validate({"name": wanted.name, "schema": wanted.json_schema, "strict": wanted.strict})
    return ResponseFormat(type=wanted.type, json_schema=schema if wanted.type == "json_schema" else None)


_RENAMED = (
    (re.compile(r"^(tools\[\d+\])\.(function|custom)"), r"\1"),
    (re.compile(r"^(tools\[\d+\]\.format)\.grammar"), r"\1"),
    (re.compile(r"^tool_choice\.allowed_tools(\.tools\[\d+\])\.(function|custom)"), r"tool_choice\1"),
    (re.compile(r"^tool_choice\.(function|custom|allowed_tools)"), "tool_choice"),
    (re.compile(r"^response_format(\.json_schema)?"), "text.format"),
    (re.compile(r"^messages"), "input"),
    (re.compile(r"\.tool_call_id$"), ".call_id"),
    (re.compile(r"^verbosity"), "text.verbosity"),
    (re.compile(r"^max_(completion_)?tokens"), "max_output_tokens"),
)


def as_response_error(error: ApiError) -> ApiError:
    """An error about a chat request with the field's name in a response request."""
    if error.param is None:
        return error
    param = error.param
    for pattern, name in _RENAMED:
        param = pattern.sub(name, param)
    return ApiError(
        error.status,
        error.message.replace(error.param, param),
        param=param,
        code=error.code,
        retry_after=error.retry_after,
        retry=error.retry,
    )


_NAMED_OTHERWISE = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}

_REASONS = {
    "store": "responses are not stored here; leave it out, or false",
    "previous_response_id": "responses are not stored here; send the whole conversation as input",
    "conversation": "conversations are not stored here; send the whole conversation as input",
    "background": "responses are not stored here, so none can be made in the background and fetched later",
    "background_options": "there are no background responses here",
    "prompt": "prompt templates are not stored here; send instructions and input",
    "context_management": "conversations are not compacted here",
    "moderation": "there is no moderation model here",
    "truncation": "input that is too long is refused, never cut; leave it out, or 'disabled'",
}
