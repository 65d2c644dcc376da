"""A request of ours in vLLM's form. Tools are parsed on our side, so the text comes back as the model writes it."""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

from quintet_common.errors import ApiError

from quintet_chat.protocol import Generate, Grammar
from quintet_chat.tools.base import one_of, tag

_RESERVED = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "padding",
        "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip
"""What the call that renders a template is told by the server; above all, no template of the client's own."""


Thinking = Literal["open", "closed"] | None
"""What the prompt has made of the model's thinking; see ``quintet_chat.tools.thinking.state_after``."""


def chat(model: str, body: Generate, thinking: Thinking = None) -> dict[str, Any]:
    """For ``/v1/chat/completions``. Raises ApiError 400."""
    wanted = _conversation(model, body) | _common(body, thinking)
    if body.tools:  # in the prompt only: with "auto", vLLM would want a parser of its own
        wanted["tool_choice"] = "none"
    if body.sampling.logprobs is not None:
        wanted |= {"logprobs": True, "top_logprobs": body.sampling.logprobs}
    return wanted


def tokens(model: str, body: Generate) -> dict[str, Any]:
    """For ``/tokenize``, of messages or a text. Raises ApiError 400."""
    wanted: dict[str, Any] = {"model": model, "prompt": body.prompt}
    if body.messages is not None:
        wanted = _conversation(model, body)
    if body.add_special_tokens is not None:
        wanted["add_special_tokens"] = body.add_special_tokens
    return wanted | {"return_token_strs": True}


def _conversation(model: str, body: Generate) -> dict[str, Any]:
    """What goes into the prompt."""
    if reserved := sorted(_RESERVED.intersection(body.template_args)):
        raise ApiError(400, f"{reserved[0]!r} cannot be set by a request.", param="chat_template_kwargs")
    messages = [_message(message, body.images) for message in body.messages or []]
    wanted: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "add_generation_prompt": body.add_generation_prompt,
    }
    if body.assistant_prefix:
        messages.append({"role": "assistant", "content": body.assistant_prefix})
        wanted |= {"add_generation_prompt": False, "continue_final_message": True}
    if body.tools:
        wanted["tools"] = body.tools
    if body.template_args:
        wanted["chat_template_kwargs"] = body.template_args
    return wanted


def completion(model: str, body: Generate, room: int | None) -> dict[str, Any]:
    """For ``/v1/completions``; ``room`` is how many tokens the answer may have where the request does not say."""
    wanted = {"model": model, "prompt": body.prompt, **_common(body)}
    wanted.setdefault("max_tokens", room)
    if body.sampling.logprobs is not None:
        wanted["logprobs"] = body.sampling.logprobs
    return wanted


def _common(body: Generate, thinking: Thinking = None) -> dict[str, Any]:
    return {
        "n": body.n,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "return_token_ids": True,
        "skip_special_tokens": not body.marks,
        "spaces_between_special_tokens": False,
        **_sampling(body),
        **({} if body.grammar is None else {"structured_outputs": _structure(body.grammar, body.thinking, thinking)}),
    }


def _sampling(body: Generate) -> dict[str, Any]:
    sampling = body.sampling
    names = (
        "temperature", "top_p", "top_k", "min_p", "min_tokens", "stop", "stop_token_ids", "ignore_eos",
        "presence_penalty", "frequency_penalty", "repetition_penalty",
    )  # fmt: skip
    wanted: dict[str, Any] = {name: getattr(sampling, name) for name in names}
    if sampling.temperature == 0 and body.n > 1:
        wanted |= {"temperature": 1.0, "top_k": 1}  # the same token, but vLLM takes n > 1 with it
    if sampling.max_tokens is not None:
        wanted["max_tokens"] = sampling.max_tokens
    if sampling.seed is not None:
        wanted["seed"] = sampling.seed
    if sampling.logit_bias:
        wanted["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return wanted


def _structure(grammar: Grammar, tags: tuple[str, str] | None, thinking: Thinking) -> dict[str, Any]:
    if tags is not None and thinking != "closed":
        form = _behind_thinking(_format(grammar), tags, thinking)
        return {"structural_tag": json.dumps({"type": "structural_tag", "format": form})}
    if grammar.type == "json_object":
        return {"json_object": True}
    if grammar.type == "structural_tag":
        return {"structural_tag": json.dumps(grammar.value)}
    return {{"json_schema": "json", "regex": "regex", "ebnf": "grammar"}[grammar.type]: grammar.value}


def _behind_thinking(answer: dict[str, Any], tags: tuple[str, str], thinking: Thinking) -> dict[str, Any]:
    """The format of an ``answer`` before which the model may think, or ends its thinking."""
    opening, closing = tags
    gap = {"type": "regex", "pattern": "\\n*"}
    thought = tag("" if thinking == "open" else opening, {"type": "any_text"}, closing)
    behind = {"type": "sequence", "elements": [thought, gap, answer]}
    return behind if thinking == "open" else one_of([behind, answer])


def _format(grammar: Grammar) -> dict[str, Any]:
    """A grammar as a part of a structural tag."""
    if grammar.type == "structural_tag":
        found: dict[str, Any] = grammar.value["format"]
        return found
    if grammar.type == "regex":
        return {"type": "regex", "pattern": grammar.value}
    if grammar.type == "ebnf":
        return {"type": "grammar", "grammar": grammar.value}
    return {
        "type": "json_schema",
        "json_schema": grammar.value if grammar.type == "json_schema" else {"type": "object"},
    }


def _message(message: dict[str, Any], images: list[bytes]) -> dict[str, Any]:
    plain = dict(message)
    if isinstance(plain.get("content"), list):
        plain["content"] = [_part(part, images) for part in plain["content"]]
    if calls := plain.get("tool_calls"):
        plain["tool_calls"] = [_call(call) for call in calls]
    return plain


def _part(part: dict[str, Any], images: list[bytes]) -> dict[str, Any]:
    if part.get("type") != "image":
        return part
    # The type is not looked at; the bytes say what they are.
    url = "data:image/png;base64," + base64.b64encode(images[part["image"]]).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments as text, which is how OpenAI has them."""
    function = call["function"]
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
