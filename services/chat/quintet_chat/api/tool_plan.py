"""What a request's tools come to: which the model sees, what its answer must look like, how the answer is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quintet_common.errors import bad_request
from quintet_common.worker.process import Worker

from quintet_chat.api.chat_request import ChatRequest
from quintet_chat.api.offered_tools import Mode, choice_of, offered_tools
from quintet_chat.api.schema_limits import check_schema
from quintet_chat.api.schema_strict import check_strict
from quintet_chat.protocol import Grammar
from quintet_chat.tools import FAMILIES
from quintet_chat.tools.base import Family, Parser, ToolFunction, one_of, tag
from quintet_chat.tools.bounds import bounded

_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class ToolPlan:
    """``functions`` is empty when the model shall not call."""

    mode: Mode = "none"
    functions: Sequence[ToolFunction] = ()
    tools: list[dict[str, Any]] = field(default_factory=list)
    """The same in OpenAI's form, as chat templates take them."""
    family: Family | None = None
    """How this model writes calls; also needed for calls of the history."""
    several: bool = True

    @property
    def format(self) -> dict[str, Any] | None:
        """The structural tag format of the answer, or None when tools do not bind it."""
        if self.family is None or not self.functions:
            return None
        if self.mode == "required":
            return self.family.calls(self.functions, self.several)
        return self.family.text_or_calls(self.functions, self.several)

    def parser(self) -> Parser | None:
        return self.family.parser(self.functions) if self.family is not None and self.functions else None


def family_of(worker: Worker[Any]) -> Family | None:
    """The model's family: ``engine_args: {tool_family: NAME}`` of models.yml, else what the worker found."""
    name = worker.spec.engine_args.get("tool_family", worker.info.get("tool_family"))
    return FAMILIES.get(name) if isinstance(name, str) else None


def is_small_model(worker: Worker[Any]) -> bool:
    """Whether models.yml says that the model is too small to decide on a call, and on the end of what it writes."""
    return worker.spec.auto_tools == "eager"


def plan_tools(request: ChatRequest, worker: Worker[Any], last_role: str) -> ToolPlan:
    """Raises ApiError 400 that names ``tools`` or ``tool_choice``."""
    family = family_of(worker)
    offered = offered_tools(request)
    choice = request.tool_choice
    if not offered:
        if choice not in (None, "none", "auto"):
            raise bad_request("tool_choice needs tools.", "tool_choice", "invalid_value")
        return ToolPlan(family=family)
    mode, names, several = choice_of(choice, offered)
    is_small = is_small_model(worker)
    several = several and (
        request.parallel_tool_calls is True or (not is_small and request.parallel_tool_calls is None)
    )
    if mode == "auto" and is_small:
        mode = "required" if last_role == "user" else "none"
    if mode == "none":
        return ToolPlan(family=family)
    if family is None:
        raise bad_request(
            f"tools: the model {worker.spec.id!r} cannot call functions.", "tools", "unsupported_parameter"
        )
    functions = [offered[name].function for name in names]
    if is_small:
        functions = [replace(each, parameters=bounded(each.parameters)) for each in functions]
    return ToolPlan(mode, functions, [offered[name].shown for name in names], family, several)


def grammar_of(
    request: ChatRequest, plan: ToolPlan, is_small: bool, tags: tuple[str, str] | None = None
) -> Grammar | None:
    """What the whole answer must match: calls, the response format, or either of the two.

    ``tags`` are those that the model is used to write around its answer; they may be there.
    """
    schema = _response_schema(request)
    if is_small:
        schema = bounded(schema)
    answer = None if schema is None else {"type": "json_schema", "json_schema": schema}
    wanted = answer if answer is None or plan.family is None else plan.family.answer(answer)
    if wanted is not None and tags is not None:
        line_break = {"type": "regex", "pattern": "\\n?"}
        inside = {"type": "sequence", "elements": [line_break, wanted, line_break]}
        wanted = one_of([tag(tags[0], inside, tags[1]), wanted])
    tools = plan.format
    if tools is None:
        if schema is None or wanted is None:
            return None
        if wanted is answer:
            return Grammar(type="json_schema", value=schema) if schema != _ANY_OBJECT else Grammar(type="json_object")
        tools = wanted
    elif wanted is not None and plan.mode == "auto" and plan.family is not None:
        tools = one_of([plan.family.calls(plan.functions, plan.several), wanted])
    return Grammar(type="structural_tag", value={"type": "structural_tag", "format": tools})


def _response_schema(request: ChatRequest) -> dict[str, Any] | None:
    """The JSON schema of the answer, or None for free text."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return _ANY_OBJECT
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise bad_request(
            "response_format of type json_schema needs json_schema.schema.",
            "response_format.json_schema.schema",
            "missing_required_parameter",
        )
    path = "response_format.json_schema.schema"
    check_schema(wanted.json_schema.json_schema, path)
    if wanted.json_schema.strict:
        check_strict(wanted.json_schema.json_schema, path)
    return wanted.json_schema.json_schema
