"""What a chat template gives away about its model: how it writes tool calls."""

from __future__ import annotations

_MARKS = {
    "mistral": ("[TOOL_CALLS]",),
    "glm4": ("<|observation|>", "item['metadata']"),
    "llama3": ("<|python_tag|>", "Environment: ipython"),
    "hermes": ("<tool_call>",),
}
"""Family of ``quintet_chat.tools`` -> what only its templates contain. Looked for in this order."""

_FOREIGN = ("<function=", "<arg_key>")
"""Templates that borrow a family's marks for calls that are not JSON."""


def tool_family(template: str) -> str | None:
    """The family of tool calls that a chat template (Jinja source) writes, or None when it writes none we know."""
    if any(mark in template for mark in _FOREIGN):
        return None
    return next((family for family, marks in _MARKS.items() if any(mark in template for mark in marks)), None)


def renders_tools(template: str) -> bool:
    """Whether the template writes the tools that a request offers."""
    return "tools" in template
