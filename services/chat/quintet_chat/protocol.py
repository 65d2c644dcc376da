"""What the chat API and a chat worker say to each other: a conversation in, pieces of text out.

The worker applies the chat template, tokenises, generates, detokenises and finds stop strings; the API knows OpenAI's
shapes and the dialects. For each request the worker emits one Accepted, one Started when its turn comes, then Deltas of
any choice in any order, and one Finished per choice.

A loaded worker says in its info (``/v1/models`` shows it), beside ``engine``:

- ``tool_family``: how the model writes tool calls, a name of ``quintet_chat.tools``; absent: it cannot call.
- ``template_tools``: whether the chat template renders tools, tool calls and tool results itself. Where it does not,
  the API writes them into the messages.
- ``thinking``: how the model sets its thinking apart, a style of ``quintet_chat.tools``; absent: it does not think.
- ``modalities``: ``text``, and ``image`` where it takes pictures; absent: as its kind says.
- ``sampling``: what a request gets that leaves a field of Sampling out, from the model's generation config.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Sampling(msgspec.Struct, kw_only=True):
    """How tokens are chosen, per request. Defaults are OpenAI's; None means the model's own default."""

    temperature: float = 1.0
    """0 is greedy; up to 2."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is no limit."""
    min_p: float = 0.0
    max_tokens: int | None = None
    """New tokens per choice; None: up to the model's context."""
    min_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    """How many alternatives to report beside each chosen token; None: no logprobs at all."""


class Grammar(msgspec.Struct, kw_only=True):
    """What the answer must match, always: masks are applied to the logits."""

    type: Literal["json_object", "json_schema", "structural_tag", "regex", "ebnf"]
    value: Any = None
    """The schema as an object, the structural tag as an object, or the pattern."""


class Generate(msgspec.Struct, kw_only=True):
    """One request. Either ``messages`` (chat) or ``prompt`` (completion: text or token ids) is given."""

    messages: list[dict[str, Any]] | None = None
    """OpenAI messages; a picture is the part ``{"type": "image", "image": INDEX}`` with an index into ``images``."""
    prompt: str | list[int] | None = None
    images: list[bytes] = []
    """Encoded pictures, checked and readable."""
    tools: list[dict[str, Any]] = []
    template_args: dict[str, Any] = {}
    """Passed to the chat template (``chat_template_kwargs`` of the API)."""
    assistant_prefix: str = ""
    """Text put at the start of the answer, not generated and not sent back."""
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    n: int = 1
    grammar: Grammar | None = None
    add_generation_prompt: bool = True
    """Whether the chat template ends with the beginning of the assistant's message."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its own; None: to prompts, and not to messages, whose template writes them."""
    echo: bool = False
    """Whether Accepted carries the prompt as text."""
    only_tokens: bool = False
    """Whether Accepted shall carry the prompt's tokens and nothing be generated. The prompt may have any length."""
    marks: list[str] = []
    """Special tokens that stay in the text; formats of tool calls and of thinking are made of them."""
    thinking: tuple[str, str] | None = None
    """The tags around what the model thinks before it answers. The grammar holds from the end of that on."""


class Accepted(msgspec.Struct, tag="accepted"):
    """The prompt fits and the request is queued; everything that can be refused has been."""

    prompt_tokens: int
    prompt_text: str | None = None
    """The prompt as text, when the request has ``echo``."""
    tokens: list[int] | None = None
    token_texts: list[str] | None = None
    """Each token as the vocabulary writes it; this and ``tokens`` when the request has ``only_tokens``."""
    thinking: bool = False
    """Whether the prompt ends with the opening tag of ``thinking``, so that the answer begins inside."""


class Started(msgspec.Struct, tag="started"):
    """The model begins with the request."""

    queue_seconds: float
    """Since the worker got it; preparing the prompt is part of that."""
    cached_tokens: int = 0
    """How many tokens of the prompt were known from earlier requests and not computed."""


class TokenLogprob(msgspec.Struct):
    token: str
    bytes: list[int]
    logprob: float
    top: list[tuple[str, list[int], float]] = []
    """Alternatives, best first: token, its bytes, its logprob."""


class Delta(msgspec.Struct, tag="delta"):
    """A piece of one choice's text, made of ``tokens`` tokens; it may be empty while bytes are held back."""

    index: int
    text: str
    tokens: int = 1
    logprobs: list[TokenLogprob] = []


class Finished(msgspec.Struct, tag="finished"):
    index: int
    reason: Literal["stop", "length"]


Event = Accepted | Started | Delta | Finished
