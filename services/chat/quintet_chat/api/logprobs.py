"""Log probabilities in OpenAI's two shapes: chat's, per token; the older one of text completions, as parallel lists."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from itertools import accumulate

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs

from quintet_chat.protocol import TokenLogprob


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> list[ChatCompletionTokenLogprob]:
    return [
        ChatCompletionTokenLogprob(
            token=each.token,
            bytes=each.bytes,
            logprob=each.logprob,
            top_logprobs=[TopLogprob(token=token, bytes=raw, logprob=value) for token, raw, value in each.top],
        )
        for each in tokens
    ]


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> Logprobs:
    """``offset`` is where the first token's text starts, in characters of the answer's text."""
    return Logprobs(
        tokens=[each.token for each in tokens],
        token_logprobs=[each.logprob for each in tokens],
        top_logprobs=[{token: value for token, _, value in each.top} | {each.token: each.logprob} for each in tokens],
        text_offset=[offset + start for start in _starts(tokens)[:-1]],
    )


def characters(tokens: Sequence[TokenLogprob]) -> int:
    """How many characters the text of ``tokens`` has."""
    return _starts(tokens)[-1]


def _starts(tokens: Sequence[TokenLogprob]) -> list[int]:
    """Where the text of each token starts, and where that of the last ends. One in the middle of a character starts
    where that does."""
    decoder = getincrementaldecoder("utf-8")("ignore")
    return [0, *accumulate(len(decoder.decode(bytes(each.bytes))) for each in tokens)]
