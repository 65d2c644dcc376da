"""From a request to tokens: the chat template, the tokenizer, and everything that can be refused before generating."""

from __future__ import annotations

import inspect
import json
from typing import Any

from jinja2 import TemplateError
from quintet_common.errors import ApiError
from transformers import PreTrainedTokenizerBase

from quintet_chat.engine.pictures import PictureReader
from quintet_chat.engine.request import Request
from quintet_chat.protocol import Generate
from quintet_chat.tools.thinking import state_after

_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {
    "documents",
    "kwargs",
}
"""What the call that renders a template is told by us."""

_TEMPLATE_FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""What a chat template may come to with a request that it was not made for."""

COUNTED, COUNTED_PER_TOKEN = 200_000, 8
"""Characters, or token ids, of a request that only asks for tokens: so many, or so many for each of the context."""


class Preparer:
    """For one thread. ``context`` is the limit of prompt + answer in tokens, ``vocabulary`` the model's.

    ``reader`` is for requests with pictures, which are refused without one.
    """

    def __init__(
        self, tokenizer: Any, context: int, vocabulary: int, eos: frozenset[int], reader: PictureReader | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._reader = reader
        self._takes_text = _takes_text(tokenizer)
        self._context = context
        self._vocabulary = vocabulary
        self._eos = eos
        self._counted = max(COUNTED, COUNTED_PER_TOKEN * context)
        self._longest_token = max(map(len, tokenizer.get_vocab()))

    def prepare(self, request: Request) -> None:
        """Fill in the request's prompt, limits and stop tokens. Raises ApiError 400 for what the model cannot take."""
        body = request.body
        if body.images and self._reader is None:
            raise ApiError(400, "This model reads text only; it takes no images.", param="messages", code="no_images")
        self._check_ids(body)
        param = "prompt" if body.messages is None else "messages"
        if isinstance(body.prompt, list):
            self._check_counted(len(body.prompt), "token ids", body, param)
            request.prompt = body.prompt
        else:
            text = body.prompt if body.messages is None else self._render(body)
            pictures = [body.images[index] for index in _pictures_of(body.messages or [])]
            if pictures and self._reader is not None:
                request.prompt, request.pictures = self._reader.read(
                    text or "", pictures, lambda written: self._tokenize(written, body, param)
                )
            else:
                request.prompt = self._tokenize(text or "", body, param)
            request.thinking = state_after(text or "", body.thinking)
        if body.only_tokens:
            return
        self._check_known(request, param)
        room = self._context - len(request.prompt)
        if room < 1:
            raise self._too_long(f"{len(request.prompt)}", param)
        wanted = body.sampling.max_tokens
        request.max_tokens = room if wanted is None else min(wanted, room)
        request.stop_ids = frozenset(body.sampling.stop_token_ids) | (
            frozenset() if body.sampling.ignore_eos else self._eos
        )

    def text_of(self, prompt: list[int], special: bool = False) -> str:
        """``special``: with the special tokens."""
        text: str = self._tokenizer.decode(prompt, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return text

    def texts_of(self, prompt: list[int]) -> list[str]:
        """Each token as the vocabulary writes it."""
        return [str(text) for text in self._tokenizer.convert_ids_to_tokens(prompt)]

    def _check_ids(self, body: Generate) -> None:
        ids = {
            "prompt": body.prompt if isinstance(body.prompt, list) else [],
            "logit_bias": body.sampling.logit_bias,
            "stop_token_ids": body.sampling.stop_token_ids,
        }
        for param, tokens in ids.items():
            wrong = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
            if wrong is not None:
                limit = self._vocabulary - 1
                raise ApiError(400, f"Token id {wrong} in {param} is not between 0 and {limit}.", param=param)
        if body.prompt == []:
            raise ApiError(400, "The prompt is empty.", param="prompt")

    def _check_known(self, request: Request, param: str) -> None:
        """Some tokenizers have special tokens that the model has no embedding for; those of a picture need none."""
        if max(request.prompt) < self._vocabulary:
            return
        for token in request.prompt if request.pictures is None else request.pictures.text:
            if isinstance(token, int) and token >= self._vocabulary:
                written = self.text_of([token], special=True)
                raise ApiError(400, f"There is {written!r} in {param}, a token that the model lacks.", param=param)

    def _tokenize(self, text: str, body: Generate, param: str) -> list[int]:
        self._check_counted(len(text), "characters", body, param)
        if len(text) > self._context * self._longest_token and not body.only_tokens:
            raise self._too_long(f"at least {len(text) // self._longest_token}", param)
        # A chat template writes the special tokens itself.
        adds = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
        ids: list[int] = self._tokenizer(text, add_special_tokens=adds)["input_ids"]
        if body.only_tokens:
            return ids
        first = (
            self._tokenizer.bos_token_id if self._tokenizer.bos_token_id is not None else min(self._eos, default=None)
        )
        if not ids and first is not None:
            ids = [first]
        if not ids:
            raise ApiError(400, "The prompt is empty.", param=param)
        return ids

    def _check_counted(self, length: int, unit: str, body: Generate, param: str) -> None:
        """One thread prepares all requests, so nobody may hold it for long with a text that is never answered."""
        if body.only_tokens and length > self._counted:
            message = f"The {param} came to {length} {unit}; at most {self._counted} are read at once."
            raise ApiError(400, message, param=param, code="context_length_exceeded", retry=False)

    def _render(self, body: Generate) -> str:
        if not self._tokenizer.chat_template:
            message = "This model has no chat template; it takes plain prompts at /v1/completions."
            raise ApiError(400, message, param="messages", code="no_chat_template")
        # A template of the client's own, above all, is code that we do not run.
        if reserved := sorted(_RESERVED.intersection(body.template_args)):
            raise ApiError(400, f"{reserved[0]!r} cannot be set by a request.", param="chat_template_kwargs")
        try:
            text: str = self._tokenizer.apply_chat_template(
                [self._as_template_takes_it(message) for message in body.messages or []],
                tools=body.tools or None,
                tokenize=False,
                add_generation_prompt=body.add_generation_prompt,
                **body.template_args,
            )
        except _TEMPLATE_FAILURES as error:
            reason = str(error) or type(error).__name__
            message = f"The model's chat template refuses these messages: {reason}"
            raise ApiError(400, message, param="messages", code="chat_template") from None
        return text + body.assistant_prefix

    def _as_template_takes_it(self, message: dict[str, Any]) -> dict[str, Any]:
        """Content as one string, or as parts where pictures or the template ask for them."""
        plain = _plain(message)
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") == "image" for part in content):
            return {**plain, "content": [{"type": "image"} if part["type"] == "image" else part for part in content]}
        return plain if self._takes_text else {**plain, "content": [{"type": "text", "text": plain["content"]}]}

    def _too_long(self, length: str, param: str) -> ApiError:
        message = (
            f"This model's maximum context length is {self._context} tokens, of which the answer needs at least one. "
            f"Your {param} came to {length} tokens. Please shorten them."
        )
        return ApiError(400, message, param=param, code="context_length_exceeded", retry=False)


def _takes_text(tokenizer: Any) -> bool:
    """Whether the chat template takes a message's content as a string; those of some image-text models want parts."""
    if not tokenizer.chat_template:
        return True
    probe = "Quintet"

    def shown(content: Any) -> bool:
        try:
            return probe in tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        except _TEMPLATE_FAILURES:
            return False

    return shown(probe) or not shown([{"type": "text", "text": probe}])


def _pictures_of(messages: list[dict[str, Any]]) -> list[int]:
    """The indices of the pictures in the order in which the messages have them."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    return [part["image"] for part in parts if part.get("type") == "image"]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message as chat templates expect it: content as one string, arguments of tool calls as objects."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(part.get("text") or part.get("refusal") or "" for part in content)
    plain = {**message, "content": content or ""}
    if calls := message.get("tool_calls"):
        plain["tool_calls"] = [_with_object(call) for call in calls]
    return plain


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return call
    return {**call, "function": {**function, "arguments": arguments}}
