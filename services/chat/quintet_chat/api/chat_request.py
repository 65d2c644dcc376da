"""The body of a chat completion request: every field of OpenAI's, each acted on, accepted or refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from quintet_common.errors import bad_request

from quintet_chat.api.sampling import INT64, SamplingFields

_STRICT = ConfigDict(strict=True)

MAX_MESSAGES = 10_000
"""Messages of one conversation."""

MAX_DEFINITION = 64 << 10
"""Characters of a custom tool's grammar."""

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class FunctionCall(BaseModel):
    model_config = _STRICT

    name: str
    arguments: str


class CustomCall(BaseModel):
    model_config = _STRICT

    name: str
    input: str


class ToolCall(BaseModel):
    """A call that an assistant message of the history made."""

    model_config = _STRICT

    id: str
    type: str = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class Message(BaseModel):
    """One message. Only on the ZLAI paths may ``role`` be missing; what goes with which role is checked later."""

    model_config = _STRICT

    role: Literal["developer", "system", "user", "assistant", "tool", "function"] | None = None
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: Any = None
    """Refused, as is ``function_call``: a message that was said is not kept here, and calls are in ``tool_calls``."""
    function_call: Any = None
    reasoning_content: str | None = None
    """What the assistant thought, as an answer here said it; templates that keep thoughts get it back."""
    reasoning: str | None = None
    """The same under the name that some clients use."""


class FunctionDefinition(BaseModel):
    model_config = _STRICT

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextGrammar(BaseModel):
    model_config = _STRICT

    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Field(max_length=MAX_DEFINITION)]


class InputFormat(BaseModel):
    """What the text is that a custom tool is called with."""

    model_config = _STRICT

    type: Literal["text", "grammar"]
    grammar: TextGrammar | None = None


class CustomDefinition(BaseModel):
    model_config = _STRICT

    name: Name
    description: str | None = None
    format: InputFormat | None = None


class Tool(BaseModel):
    model_config = _STRICT

    type: str
    function: FunctionDefinition | None = None
    custom: CustomDefinition | None = None


class FunctionName(BaseModel):
    model_config = _STRICT

    name: str


class AllowedTools(BaseModel):
    model_config = _STRICT

    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class ToolChoiceObject(BaseModel):
    model_config = _STRICT

    type: str
    function: FunctionName | None = None
    custom: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchema(BaseModel):
    model_config = ConfigDict(strict=True, populate_by_name=True)

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(SamplingFields):
    """What ``POST /chat/completions`` takes."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    # Accepted without effect on the answer: bookkeeping, and hints of caching and scheduling.
    metadata: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None

    # Refused by name when they ask for what no model here can do.
    audio: dict[str, Any] | None = None
    function_call: Any = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None
    moderation: dict[str, Any] | None = None
    store: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    web_search_options: dict[str, Any] | None = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        asked = {
            "audio": self.audio is not None,
            "function_call": self.function_call is not None,
            "functions": self.functions is not None,
            "modalities": bool(self.modalities) and self.modalities != ["text"],
            "moderation": self.moderation is not None,
            "store": self.store is True,
            "verbosity": self.verbosity not in (None, "medium"),
            "web_search_options": self.web_search_options is not None,
        }
        for field, is_asked in asked.items():
            if is_asked:
                raise bad_request(f"{field}: {_REASONS[field]}.", field, "unsupported_parameter")
        reserved = _RESERVED & (self.chat_template_kwargs or {}).keys()
        if reserved:
            text = f"chat_template_kwargs: {min(reserved)!r} cannot be set by a request."
            raise bad_request(text, "chat_template_kwargs", "invalid_value")
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true.", "top_logprobs", "invalid_value")

    @property
    def token_limit(self) -> int | None:
        """``max_completion_tokens``, or its older name ``max_tokens``."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report beside each token; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None


_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Arguments of a tokenizer that are not variables of its template."""

_REASONS = {
    "audio": "the models of this service write text only; speech is made by /v1/audio/speech",
    "function_call": "it was replaced by tool_choice; please use that",
    "functions": "it was replaced by tools; please use that",
    "modalities": "the models of this service write text only",
    "moderation": "there is no moderation model here",
    "store": "answers are not stored here",
    "verbosity": "the models of this service know one verbosity; ask for short or long answers in the prompt",
    "web_search_options": "there is no web search here",
}
