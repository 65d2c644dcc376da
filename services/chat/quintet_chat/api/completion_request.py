"""The body of a text completion request."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag
from quintet_common.errors import bad_request

from quintet_chat.api.sampling import INT64, MAX_CHOICES, SamplingFields

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of ``max_tokens`` on this endpoint."""

MAX_PROMPTS = 256
"""Prompts of one request; they are queued together."""

MAX_TOTAL = 1024
"""Choices that one request may have generated, over all of its prompts: more would keep others waiting for minutes."""

TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=INT64)]], Field(min_length=1)]
Prompts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
PromptIds = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]


def _form_of(prompt: Any) -> str | None:
    """Which of its forms a prompt is meant to be, so that an error is about that one alone."""
    if isinstance(prompt, str):
        return "text"
    if not isinstance(prompt, list):
        return None
    first = prompt[0] if prompt else ""
    return "ids" if isinstance(first, int) else "id_lists" if isinstance(first, list) else "texts"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[Prompts, Tag("texts")]
    | Annotated[PromptIds, Tag("id_lists")],
    Discriminator(
        _form_of,
        custom_error_type="prompt",
        custom_error_message="expected a string, a list of strings, token ids or a list of lists of token ids",
    ),
]


class CompletionRequest(SamplingFields):
    """What ``POST /completions`` takes."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=INT64)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.suffix:
            raise bad_request(
                "suffix: the models of this service cannot fill in the middle.", "suffix", "unsupported_parameter"
            )
        if self.echo and self.logprobs is not None:
            raise bad_request(
                "logprobs cannot be had with echo: those of the prompt are not computed.",
                "logprobs",
                "unsupported_parameter",
            )
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise bad_request("best_of must not be less than n.", "best_of", "invalid_value")
        if self.candidates * len(self.prompts) > MAX_TOTAL:
            field = "n" if self.best_of is None else "best_of"
            message = f"{field}: {len(self.prompts)} prompts of {self.candidates} choices are more than {MAX_TOTAL}."
            raise bad_request(message, field, "invalid_value")
        if self.stream and self.candidates > (self.n or 1):
            raise bad_request("best_of cannot be streamed.", "best_of", "invalid_value")
        if self.max_tokens == 0 and not self.echo:
            raise bad_request("max_tokens must be at least 1 without echo.", "max_tokens", "invalid_value")

    @property
    def candidates(self) -> int:
        """Choices generated per prompt; the best ``n`` of them are answered."""
        return self.best_of or self.n or 1

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if isinstance(prompt, str | list)]
