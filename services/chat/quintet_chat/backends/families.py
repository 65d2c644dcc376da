"""What a chat template gives away about its model: how it writes tool calls, and how it sets its thinking apart."""

from __future__ import annotations

from typing import get_args

from quintet_common import engine_args

from quintet_chat.tools import FAMILIES, THINKING

assert set(get_args(engine_args.ToolFamily)) == {"none", *FAMILIES}
assert set(get_args(engine_args.Thinking)) == {"none", *THINKING}

_MARKS = {
    "seed_oss": ("<seed:tool_call>",),
    "qwen3_coder": ("<parameter=",),
    "glm47": ("</arg_key><arg_value>",),
    "glm45": ("<arg_key>",),
    "minimax_m2": ("<minimax:tool_call>",),
    "harmony": ("<|channel|>",),
    "deepseek": ("```json",),
    "deepseek_v31": ("<｜tool▁calls▁begin｜>",),
    "mistral_args": ("[ARGS]",),
    "mistral": ("[TOOL_CALLS]",),
    "glm4": ("<|observation|>", "item['metadata']"),
    "llama3": ("<|python_tag|>", "Environment: ipython"),
    "hermes": ("<tool_call>",),
}
"""Family of ``quintet_chat.tools`` -> what only its templates contain. Looked for in this order."""

_NEEDS = {"deepseek": "<｜tool▁calls▁begin｜>", "qwen3_coder": "<function="}
"""What a template must contain besides."""

_FOREIGN = {"<function=": {"qwen3_coder", "seed_oss"}, "<tool_sep>": set[str](), "<tool_calls>": set[str]()}
"""Marks of formats that borrow from the families -> the families that have them themselves."""

_THINKING_MARKS = {
    "harmony": ("<|channel|>",),
    "gemma4": ("<|channel>",),
    "apertus": ("<|inner_prefix|>",),
    "cohere": ("<|START_THINKING|>",),
    "seed_oss": ("<seed:think>",),
    "kimi": ("◁think▷",),
    "exaone_deep": ("<thought>",),
    "granite_3_2": ("Here is my thought process:",),
    "granite": ("<think>", "<response>"),
    "hunyuan": ("<think>", "<answer>"),
    "think": ("<think>",),
    "mistral": ("[THINK]",),
}
"""Style of ``quintet_chat.tools`` -> what its templates all contain. Looked for in this order."""


def tool_family(template: str) -> str | None:
    """The family of tool calls that a chat template (Jinja source) writes, or None when it writes none we know."""
    foreign = [owners for mark, owners in _FOREIGN.items() if mark in template]
    return next(
        (
            family
            for family, marks in _MARKS.items()
            if any(mark in template for mark in marks)
            and _NEEDS.get(family, "") in template
            and all(family in owners for owners in foreign)
        ),
        None,
    )


def thinking_style(template: str) -> str | None:
    """The style of ``quintet_chat.tools.THINKING`` that a chat template knows, or None."""
    styles = _THINKING_MARKS.items()
    return next((style for style, marks in styles if all(mark in template for mark in marks)), None)


def renders_tools(template: str) -> bool:
    """Whether the template writes the tools that a request offers."""
    return "tools" in template
