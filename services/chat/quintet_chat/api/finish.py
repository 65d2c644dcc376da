"""How an answer ended and what it cost, in OpenAI's words."""

from __future__ import annotations

from typing import Literal

from openai.types.completion_usage import CompletionTokensDetails, CompletionUsage, PromptTokensDetails

from quintet_chat.metrics import Meter

FinishReason = Literal["stop", "length", "tool_calls"]


def finish_reason(reason: Literal["stop", "length"], called: bool) -> FinishReason:
    """A truncated answer says so even when it was calling: its arguments may be incomplete."""
    return "tool_calls" if called and reason == "stop" else reason


def usage_of(*meters: Meter, reasoning_tokens: int | None = None) -> CompletionUsage:
    """The sum over the requests that an answer was made of; ``reasoning_tokens`` of models that think."""
    prompt = sum(meter.prompt_tokens for meter in meters)
    completion = sum(meter.completion_tokens for meter in meters)
    details = PromptTokensDetails(cached_tokens=sum(meter.cached_tokens for meter in meters))
    usage = CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=details,
    )
    if reasoning_tokens is not None:
        usage.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=reasoning_tokens)
    return usage
