"""The tools of a request, checked: functions and custom tools, and which of them the model shall call."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from quintet_common.errors import bad_request, missing_field

from quintet_chat.api.chat_request import (
    MAX_DEFINITION,
    AllowedTools,
    ChatRequest,
    CustomDefinition,
    Tool,
    ToolChoiceObject,
)
from quintet_chat.api.schema_limits import Cost, check_schema, check_together
from quintet_chat.api.schema_strict import check_strict
from quintet_chat.tools import custom
from quintet_chat.tools.base import NO_ARGUMENTS, ToolFunction
from quintet_chat.tools.text_grammar import GrammarError

Mode = Literal["none", "auto", "required"]


class Offered(NamedTuple):
    function: ToolFunction
    shown: dict[str, Any]
    """The same in OpenAI's form of a function, as chat templates take it."""


def offered_tools(request: ChatRequest) -> dict[str, Offered]:
    """The tools by their names. Raises ApiError 400 that names the field."""
    customs = [tool.custom for tool in request.tools or [] if tool.custom is not None]
    grammars = [each.format.grammar for each in customs if each.format is not None and each.format.grammar is not None]
    if sum(len(each.definition) for each in grammars) > MAX_DEFINITION:
        message = f"tools: their grammars have more than {MAX_DEFINITION} characters together."
        raise bad_request(message, "tools", "unsupported_grammar")
    offered: dict[str, Offered] = {}
    costs: list[Cost] = []
    for index, tool in enumerate(request.tools or []):
        path = f"tools[{index}].{tool.type}"
        if tool.type not in ("function", "custom"):
            message = f"tools[{index}].type: 'function' and 'custom' are served here, not {tool.type[:40]!r}."
            raise bad_request(message, f"tools[{index}].type", "unsupported_parameter")
        if getattr(tool, tool.type) is None:
            raise missing_field(path)
        found = _custom(tool.custom, path) if tool.custom and tool.type == "custom" else _function(tool, path, costs)
        name = found.function.name
        if name in offered:
            path = f"{path}.name"
            raise bad_request(f"{path}: the name {name!r} is there twice.", path, "invalid_value")
        offered[name] = found
    check_together(costs, "tools")
    return offered


def choice_of(choice: str | ToolChoiceObject | None, offered: dict[str, Offered]) -> tuple[Mode, list[str], bool]:
    """The mode, the names that may be called, and whether more than one call may be made."""
    if choice is None or choice == "auto":
        return "auto", list(offered), True
    if isinstance(choice, str):
        return ("none" if choice == "none" else "required"), list(offered), True
    named = {"function": choice.function, "custom": choice.custom}.get(choice.type)
    if named is not None:
        return "required", [_known(named.name, choice.type, offered, f"tool_choice.{choice.type}.name")], False
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        return choice.allowed_tools.mode, _allowed(choice.allowed_tools, offered), True
    raise bad_request(
        "tool_choice is 'none', 'auto', 'required', a function or a custom tool by name, or allowed_tools.",
        "tool_choice",
        "invalid_value",
    )


def _function(tool: Tool, path: str, costs: list[Cost]) -> Offered:
    definition = tool.function
    assert definition is not None
    path = f"{path}.parameters"
    given = definition.parameters
    costs.append(check_schema(given or {}, path))
    if definition.strict:
        check_strict(given or {}, path)
    if (given or {}).get("type", "object") != "object":
        raise bad_request(f"{path}: expected the schema of an object.", path, "invalid_value")
    parameters = NO_ARGUMENTS if given is None else {"type": "object"} | given
    shown = {"type": "function", "function": definition.model_dump(exclude_none=True)}
    return Offered(ToolFunction(definition.name, parameters, bool(definition.strict)), shown)


def _custom(definition: CustomDefinition, path: str) -> Offered:
    """As a function with one parameter, since models know nothing else."""
    words = [definition.description] if definition.description else []
    format = definition.format
    if format is None or format.type == "text":
        function = custom.function_of(definition.name)
    elif format.grammar is None:
        path = f"{path}.format.grammar"
        raise missing_field(path)
    else:
        path = f"{path}.format.grammar.definition"
        syntax, text = format.grammar.syntax, format.grammar.definition
        try:
            function = custom.function_of(definition.name, syntax, text)
        except GrammarError as error:
            raise bad_request(f"{path}: no grammar is made of this: {error}.", path, "unsupported_grammar") from None
        kind = "Lark grammar" if syntax == "lark" else "regular expression"
        words.append(f"The input matches this {kind}:\n{text}")
    described = {"description": "\n\n".join(words)} if words else {}
    shown = {"name": definition.name, **described, "parameters": custom.PARAMETERS}
    return Offered(function, {"type": "function", "function": shown})


def _allowed(allowed: AllowedTools, offered: dict[str, Offered]) -> list[str]:
    names = []
    for index, tool in enumerate(allowed.tools):
        kind = "custom" if tool.get("type") == "custom" else "function"
        named = tool.get(kind)
        name = named.get("name") if isinstance(named, dict) else None
        names.append(_known(name, kind, offered, f"tool_choice.allowed_tools.tools[{index}].{kind}.name"))
    if not names:
        path = "tool_choice.allowed_tools.tools"
        raise bad_request(f"{path} is empty.", path, "invalid_value")
    return list(dict.fromkeys(names))


def _known(name: Any, kind: str, offered: dict[str, Offered], path: str) -> str:
    found = offered.get(name) if isinstance(name, str) else None
    if found is None or found.function.is_custom != (kind == "custom"):
        raise bad_request(f"{path}: {str(name)[:80]!r} is not among the tools.", path, "invalid_value")
    return found.function.name
