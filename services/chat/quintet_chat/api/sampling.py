"""The request fields that say how tokens are chosen; chat and text completions share them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from quintet_common.errors import bad_request
from quintet_common.worker.process import Worker

from quintet_chat.protocol import Event, Sampling

MAX_CHOICES = 128
"""OpenAI's limit of ``n``."""

INT64 = 2**63 - 1

_FORMS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")

StopString = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """``include_usage`` adds a last chunk with the usage. ``include_obfuscation`` adds random characters to each delta;
    by default there are none."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ExtraFields(BaseModel):
    """What OpenAI does not have, under the names that vLLM and others gave it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    top_k: Annotated[int, Field(ge=-1, le=INT64)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0, le=INT64)]] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT64)] | None = None


class SamplingFields(ExtraFields):
    """What both kinds of requests have. ``null`` is the same as leaving a field out, as with OpenAI."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: str | None = None

    # Refused: vLLM's ways to ask for an answer's form. Without them it would have any.
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    def refuse_unsupported(self) -> None:
        """Raise ApiError 400 that names the first field which asks for what cannot be had."""
        for field in _FORMS:
            if getattr(self, field) is not None:
                message = f"{field}: the form of an answer is asked for with response_format, in chat completions."
                raise bad_request(message, field, "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options is only allowed when stream is true.", "stream_options", "invalid_value")

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def obfuscates(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_obfuscation)

    def sampling(self, worker: Worker[Event], max_tokens: int | None, logprobs: int | None) -> Sampling:
        """These fields for the worker; what the request leaves out is models.yml's, or else the model's own default."""
        defaults = worker.sampling
        max_tokens = defaults.get("max_tokens") if max_tokens is None else max_tokens
        if max_tokens is not None and (self.min_tokens or 0) > max_tokens:
            raise bad_request("min_tokens is greater than the limit of tokens.", "min_tokens", "invalid_value")
        names = ("temperature", "top_p", "top_k", "min_p", "min_tokens", "stop_token_ids", "ignore_eos", "seed")
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        asked = {name: value for name in names + penalties if (value := getattr(self, name)) is not None}
        chosen = {key: value for key, value in defaults.items() if key in names + penalties} | asked
        chosen["top_k"] = max(0, chosen.get("top_k", 0))
        return Sampling(
            **chosen, max_tokens=max_tokens, logprobs=logprobs, stop=self._stop(), logit_bias=self._logit_bias()
        )

    def _stop(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def _logit_bias(self) -> dict[int, float]:
        bias = {}
        for token, value in (self.logit_bias or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) < 19):
                raise bad_request(f"logit_bias: {token[:40]!r} is not a token id.", "logit_bias", "invalid_value")
            bias[int(token)] = value
        return bias
