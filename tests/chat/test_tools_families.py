"""Families of tool calls: what the grammar allows the parser reads, in one piece or letter by letter."""

from __future__ import annotations

import json

import pytest
from chat.accepts import Accepts
from quintet_chat.tools import FAMILIES
from quintet_chat.tools.base import CallArguments, CallStart, Piece, Text, ToolFunction
from quintet_chat.tools.bounds import bounded
from quintet_chat.tools.rendering import as_plain_messages
from quintet_chat.tools.scan import JsonObject

WEATHER = ToolFunction(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
    },
)
ADD = ToolFunction("add", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
FUNCTIONS = [WEATHER, ADD]
PARIS = '{"city": "Paris } \\" {", "unit": "C"}'
ONE = '{"a": 1}'

CALLS = {
    "hermes": f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>',
    "glm4": f"get_weather\n{PARIS}",
    "llama3": f'{{"name": "get_weather", "parameters": {PARIS}}}',
    "mistral": f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}}}]',
    "mistral_args": f"[TOOL_CALLS]get_weather[ARGS]{PARIS}",
    "deepseek": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        f"```json\n{PARIS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "harmony": f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{PARIS}",
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n"
        '<parameter=city>\nParis } " {\n</parameter>\n<parameter=unit>\nC\n</parameter>\n'
        "</function>\n</tool_call>"
    ),
    "glm45": (
        '<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris } " {</arg_value>\n'
        "<arg_key>unit</arg_key>\n<arg_value>C</arg_value>\n</tool_call>"
    ),
    "glm47": (
        '<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris } " {</arg_value>'
        "<arg_key>unit</arg_key><arg_value>C</arg_value></tool_call>"
    ),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris } " {</parameter>\n'
        '<parameter name="unit">C</parameter>\n</invoke>\n</minimax:tool_call>'
    ),
}
XML = ["qwen3_coder", "seed_oss", "glm45", "glm47", "minimax_m2"]


def as_seed(text: str) -> str:
    return text.replace("tool_call>", "seed:tool_call>")


CALLS["seed_oss"] = as_seed(CALLS["qwen3_coder"])
TWO_CALLS = {
    "hermes": CALLS["hermes"] + f'\n<tool_call>\n{{"name": "add", "arguments": {ONE}}}\n</tool_call>',
    "mistral": CALLS["mistral"][:-1] + f', {{"name": "add", "arguments": {ONE}}}]',
    "mistral_args": CALLS["mistral_args"] + f"[TOOL_CALLS]add[ARGS]{ONE}",
    "deepseek": CALLS["deepseek"].replace(
        "<｜tool▁calls▁end｜>",
        f"\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{ONE}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek_v31": CALLS["deepseek_v31"].replace(
        "<｜tool▁calls▁end｜>", f"<｜tool▁call▁begin｜>add<｜tool▁sep｜>{ONE}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "qwen3_coder": CALLS["qwen3_coder"]
    + "\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    "glm45": CALLS["glm45"] + "\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    "glm47": CALLS["glm47"] + "<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>",
    "minimax_m2": CALLS["minimax_m2"].replace(
        "</minimax:tool_call>",
        '<invoke name="add">\n<parameter name="a">1</parameter>\n</invoke>\n</minimax:tool_call>',
    ),
}
TWO_CALLS["seed_oss"] = as_seed(TWO_CALLS["qwen3_coder"])
BAD_ARGUMENTS = {
    name: call.replace("get_weather", "add").replace(PARIS, '{"a": "x"}')
    for name, call in CALLS.items()
    if name not in XML
} | {name: FAMILIES[name].call_text("add", '{"a": "x"}') for name in XML}
TEXT_BEFORE = dict.fromkeys(CALLS, "Let me look.\n\n") | {
    "harmony": "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant"
}
"""Said before a call, in the way of the family."""
every_family = pytest.mark.parametrize("name", list(FAMILIES))


def parsed(name: str, text: str, step: int) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls in ``text``, fed ``step`` characters at a time."""
    parser = FAMILIES[name].parser(FUNCTIONS)
    pieces: list[Piece] = []
    for start in range(0, len(text), step):
        pieces += parser.feed(text[start : start + step])
    pieces += parser.close()
    content = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    names = [piece.name for piece in pieces if isinstance(piece, CallStart)]
    arguments = ["" for _ in names]
    for piece in pieces:
        if isinstance(piece, CallArguments):
            arguments[piece.index] += piece.text
    return content, list(zip(names, arguments, strict=True))


@every_family
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_call_is_read_whatever_its_pieces(name: str, step: int) -> None:
    assert parsed(name, CALLS[name], step) == ("", [("get_weather", PARIS)])


@every_family
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_text_before_a_call_is_content(name: str, step: int) -> None:
    text = TEXT_BEFORE[name] + CALLS[name] + ("" if name == "harmony" else "\n")
    assert parsed(name, text, step) == ("Let me look.", [("get_weather", PARIS)])


@pytest.mark.parametrize("name", list(TWO_CALLS))
@pytest.mark.parametrize("step", [1, 4, 1000])
def test_two_calls_are_told_apart(name: str, step: int) -> None:
    assert parsed(name, TWO_CALLS[name], step) == ("", [("get_weather", PARIS), ("add", ONE)])


@every_family
@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    "text", ["Hello, world.", " two  spaces \n", "a < b, {x}", "", "get_weathe", "<tool_cal", "[1, 2]"]
)
def test_plain_text_passes_unchanged(name: str, text: str, step: int) -> None:
    assert parsed(name, text, step) == (text, [])


@pytest.mark.parametrize("text", ["<tool_call>\nno json\n</tool_call> after", "<tool_call> {"])
def test_what_only_begins_like_a_call_is_text(text: str) -> None:
    assert parsed("hermes", text, 3) == (text, [])


@every_family
def test_arguments_grow_while_they_come(name: str) -> None:
    parser = FAMILIES[name].parser(FUNCTIONS)
    cut = CALLS[name].index("Paris") + 3
    pieces = parser.feed(CALLS[name][:cut])
    assert pieces[-1] == CallArguments(0, '{"city": "Par')
    assert parser.feed("is") == [CallArguments(0, "is")]


@every_family
def test_a_call_that_is_cut_off_keeps_what_there_is(name: str) -> None:
    cut = CALLS[name].index("Paris")
    assert parsed(name, CALLS[name][:cut], 4) == ("", [("get_weather", '{"city": "')])


def test_every_call_has_an_id_of_its_own() -> None:
    pieces = FAMILIES["hermes"].parser(FUNCTIONS).feed(TWO_CALLS["hermes"])
    ids = [piece.id for piece in pieces if isinstance(piece, CallStart)]
    assert len(set(ids)) == 2
    assert all(each.startswith("call_") for each in ids)


def test_the_end_of_an_object_is_found_across_strings_and_nesting() -> None:
    scan = JsonObject()
    assert scan.feed('{"a": {"b": "}\\"') is None
    assert scan.feed('}"}, "c": [{}]} rest') == len('}"}, "c": [{}]}')


@every_family
def test_a_call_in_words_is_what_the_parser_reads(name: str) -> None:
    text = FAMILIES[name].call_text("add", ONE)
    assert parsed(name, text, 2) == ("", [("add", ONE)])


@pytest.fixture(scope="module")
def accepts() -> Accepts:
    return Accepts()


@every_family
def test_a_forced_answer_is_a_valid_call_and_nothing_else(accepts: Accepts, name: str) -> None:
    forced = FAMILIES[name].calls(FUNCTIONS, several=True)
    assert accepts(forced, CALLS[name])
    for wrong in (
        "",
        "Hello",
        f"Hello {CALLS[name]}",
        BAD_ARGUMENTS[name],
        CALLS[name].replace("get_weather", "other"),
    ):
        assert not accepts(forced, wrong), wrong


@every_family
def test_a_free_answer_is_text_or_valid_calls(accepts: Accepts, name: str) -> None:
    free = FAMILIES[name].text_or_calls(FUNCTIONS, several=True)
    text = "<|channel|>final<|message|>Hello there." if name == "harmony" else "Hello there."
    for right in (text, CALLS[name], TEXT_BEFORE[name] + CALLS[name]):
        assert accepts(free, right), right
    assert not accepts(free, BAD_ARGUMENTS[name])


@pytest.mark.parametrize("name", list(TWO_CALLS))
def test_several_calls_only_where_they_are_wanted(accepts: Accepts, name: str) -> None:
    assert accepts(FAMILIES[name].calls(FUNCTIONS, several=True), TWO_CALLS[name])
    assert not accepts(FAMILIES[name].calls(FUNCTIONS, several=False), TWO_CALLS[name])


def test_templates_without_tools_get_them_in_words() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    tool = {"type": "function", "function": {"name": "add", "parameters": ADD.parameters}}
    system, user, assistant, result = as_plain_messages(messages, [tool], FAMILIES["hermes"], forced=False)
    assert system["role"] == "system"
    assert json.dumps(tool) in system["content"]
    assert user == messages[0]
    assert assistant["content"] == f'<tool_call>\n{{"name": "add", "arguments": {ONE}}}\n</tool_call>'
    assert result["role"] == "user"
    assert "\n2\n" in result["content"]
    assert result["content"].endswith(": Add.")


def test_tools_in_words_join_the_system_message_that_is_there() -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    tools = [{"type": "function", "function": {"name": "add"}}]
    first, second = as_plain_messages(messages, tools, FAMILIES["hermes"], forced=True)
    assert first["content"].startswith("Be kind.\n\n")
    assert '{"name": "add"}' in first["content"]
    assert second == messages[1]


def test_open_strings_integers_and_lists_get_bounds_and_nothing_else() -> None:
    text, names, few = {"type": "string"}, {"type": "string", "enum": ["a"]}, {"type": "integer", "minimum": 1}
    names_or_none = {"type": ["array", "null"], "items": {"$ref": "#/$defs/x"}}
    schema = {
        "type": "object",
        "properties": {"type": text, "unit": names, "few": few, "count": {"type": "integer"}, "list": names_or_none},
        "$defs": {"x": {"anyOf": [text, text | {"maxLength": 3}, text | {"minLength": 999}]}},
        "additionalProperties": False,
    }
    open_text = text | {"maxLength": 256}
    assert bounded(schema) == {
        "type": "object",
        "properties": {
            "type": open_text,
            "unit": names,
            "few": few,
            "count": {"type": "integer", "minimum": -(10**15), "maximum": 10**15},
            "list": names_or_none | {"maxItems": 16},
        },
        "$defs": {"x": {"anyOf": [open_text, text | {"maxLength": 3}, text | {"minLength": 999, "maxLength": 999}]}},
        "additionalProperties": False,
    }
