"""Schemas that no grammar should be made of are refused by name; slow ones hold up nobody."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Any

import msgspec
import openai
import pytest
from chat.engine_kit import ask, started, submit, tiny_engine, tiny_spec
from chat.test_api_chat import USER
from openai import OpenAI
from quintet_chat.api.schema_limits import MAX_DEPTH, check_schema
from quintet_chat.engine import grammar as grammars
from quintet_chat.engine.engine import GRAMMAR_THREADS
from quintet_chat.protocol import Grammar
from quintet_common.errors import ApiError

SLOW = Grammar(type="json_schema", value={"type": "string", "description": "slow"})


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (nested(MAX_DEPTH), "nested more than 100 levels"),
        ({"enum": ["x" * 1000] * 300}, "bytes, the limit is 262144"),
        ({"type": "string", "pattern": "^[ab]{0,50000}$"}, "stands for more than 4000 characters"),
        ({"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"}, "stands for more than 4000 characters"),
        ({"properties": {f"p{number}": {} for number in range(1001)}}, "1001 properties of one object may be left out"),
        (
            {"properties": {f"o{outer}": {"properties": {f"p{i}": {} for i in range(200)}} for outer in range(10)}},
            "2010 properties, the limit is 2000",
        ),
        ({"items": {"patternProperties": {"a{9999}": {}}}}, "stands for more than 4000 characters"),
        ({"anyOf": [{"pattern": "a{3999}"} for _ in range(5)]}, "19995 characters of patterns, the limit is 16000"),
        ({"anyOf": [{"maxLength": 200 + i} for i in range(17)]}, "17 different limits of lengths beyond 128"),
    ],
    ids=["deep", "large", "repeated", "nested repetition", "optional", "properties", "key", "patterns", "lengths"],
)
def test_schemas_beyond_the_limits_are_refused(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        check_schema(schema, "x")
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "x", "schema_too_complex")


@pytest.mark.parametrize(
    "schema",
    [
        nested(MAX_DEPTH - 2),
        {"const": "x" * 20_000},
        {"enum": [f"value {number}" for number in range(5000)]},
        {"type": "string", "pattern": "^(foo|ba[rz]+)*\\d{3}-\\d{4}$"},
        {"properties": {"pattern": {"type": "string"}}},
        {"type": "string", "pattern": "("},
    ],
    ids=["deep", "const", "enum", "pattern", "a property of that name", "no pattern"],
)
def test_schemas_within_the_limits_are_left_to_the_compiler(schema: dict[str, Any]) -> None:
    check_schema(schema, "x")


def test_the_api_names_the_field_that_is_too_much(client: OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(MAX_DEPTH)}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="short", messages=USER, response_format=wanted)  # type: ignore[arg-type]
    assert caught.value.param == "response_format.json_schema.schema"
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": nested(MAX_DEPTH)}}}
    tools: Any = [{"type": "function", "function": function}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="short", messages=USER, tools=tools)  # type: ignore[arg-type]
    assert caught.value.param == "tools[0].function.parameters"


def test_the_tools_of_a_request_count_together(client: OpenAI) -> None:
    alone = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(120)}}
    tools = [{"type": "function", "function": {"name": f"f{index}", "parameters": alone}} for index in range(17)]
    client.chat.completions.create(model="short", messages=USER, tools=tools[:16])  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="2040 properties, the limit is 2000") as caught:
        client.chat.completions.create(model="short", messages=USER, tools=tools)  # type: ignore[arg-type]
    assert (caught.value.param, caught.value.code) == ("tools", "schema_too_complex")


def fresh() -> grammars.Grammars:
    known = tiny_engine()._grammars
    return grammars.Grammars(known._tokenizer, known._vocabulary, frozenset(known._stop_ids))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Compiling SLOW keeps a processor busy until the event is set."""
    release = threading.Event()
    compile_ = grammars._compile

    def slowly(compiler: Any, grammar: Grammar) -> Any:
        while grammar == SLOW and not release.is_set():
            hashlib.sha256(bytes(1 << 20))  # lets go of Python's lock
        return compile_(compiler, grammar)

    monkeypatch.setattr(grammars, "_compile", slowly)
    return release


def test_a_slow_grammar_holds_up_nobody_and_is_refused_in_time(
    slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "DEADLINE_SECONDS", 1.0)
    found = tiny_engine()._grammars
    errors: list[ApiError] = []

    def ask() -> None:
        with pytest.raises(ApiError, match="takes more than") as caught:
            found.compile(SLOW)
        errors.append(caught.value)

    waiting = threading.Thread(target=ask)
    waiting.start()
    found.compile(Grammar(type="json_schema", value={"type": "boolean", "title": "quick"}))
    assert waiting.is_alive()
    waiting.join(300)
    assert [(error.status, error.code) for error in errors] == [(400, "invalid_grammar")]
    slow.set()
    monkeypatch.setattr(grammars, "DEADLINE_SECONDS", 10.0)
    assert found.compile(SLOW) is found.compile(SLOW)


def test_who_brings_a_known_grammar_waits_for_nobody(slow: threading.Event) -> None:
    engine = started(tiny_spec())
    known = Grammar(type="json_schema", value={"type": "boolean"})
    ask(engine, "the", grammar=known, max_tokens=3)
    waiting = [submit(engine, "the", grammar=SLOW, max_tokens=3)[1] for _ in range(GRAMMAR_THREADS + 1)]
    ask(engine, "the", grammar=known, max_tokens=3)
    assert all(heard.running for heard in waiting)
    slow.set()
    for heard in waiting:
        heard.wait()


def test_threads_that_compile_step_back() -> None:
    niceness = fresh()._pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result(60)
    assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + grammars.NICENESS)


def test_waiting_for_a_processor_is_not_counted_as_compiling(
    slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "_stopwatch", lambda: float)
    monkeypatch.setattr(grammars, "DEADLINE_SECONDS", 0.1)
    monkeypatch.setattr(grammars, "BUSY_SECONDS", 0.4)
    with pytest.raises(ApiError) as caught:
        fresh().compile(SLOW)
    assert (caught.value.status, caught.value.code) == (503, "grammar_queue_full")
    slow.set()


def occupied(found: grammars.Grammars) -> None:
    """All threads that compile are at SLOW, for as long as the fixture says."""
    for _ in range(grammars.THREADS):
        found._pool.submit(found._compile, found._started(), grammars._Job(SLOW, lambda: False))


def test_the_queue_is_not_counted_as_the_own_compilation(
    slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fresh()
    occupied(found)
    monkeypatch.setattr(grammars, "DEADLINE_SECONDS", 0.4)
    monkeypatch.setattr(grammars, "QUEUE_SECONDS", 60.0)
    threading.Timer(1, slow.set).start()
    found.compile(Grammar(type="json_schema", value={"type": "boolean", "title": "waits"}))


def test_who_waits_too_long_for_others_is_told_to_come_back(
    slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fresh()
    occupied(found)
    monkeypatch.setattr(grammars, "QUEUE_SECONDS", 0.3)
    with pytest.raises(ApiError) as caught:
        found.compile(Grammar(type="json_schema", value={"type": "boolean", "title": "too long"}))
    assert (caught.value.status, caught.value.retry_after) == (503, 5)
    slow.set()


def test_nothing_is_compiled_for_a_client_that_has_left(slow: threading.Event) -> None:
    found = fresh()
    occupied(found)
    gone = Grammar(type="json_schema", value={"type": "boolean", "title": "gone"})
    left = threading.Event()
    threading.Timer(0.3, left.set).start()
    with pytest.raises(ApiError) as caught:
        found.compile(gone, has_left=left.is_set)
    assert caught.value.status == 499
    slow.set()
    found._pool.shutdown()
    assert [msgspec.msgpack.decode(key)["value"] for key in found._kept] == [SLOW.value]


def test_the_same_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny_engine()._grammars
    wanted = Grammar(type="json_schema", value={"type": "integer", "title": "once"})
    first = found.compile(wanted)
    monkeypatch.setattr(grammars, "_compile", None)
    assert found.compile(Grammar(type="json_schema", value={"type": "integer", "title": "once"})) is first


def test_a_pattern_that_the_compilers_cache_cannot_take_is_compiled_without_it() -> None:
    tiny_engine()._grammars.compile(Grammar(type="json_schema", value={"type": "string", "pattern": "^.{0,500}$"}))


def test_errors_of_the_compiler_are_in_plain_words() -> None:
    for value in ({"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}):
        with pytest.raises(ApiError) as caught:
            tiny_engine()._grammars.compile(Grammar(type="json_schema", value=value))
        assert caught.value.code == "invalid_grammar"
        assert not {"recursion", "ImplPtr", ".cc:"} & set(caught.value.message.split())


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"properties": {"a": {"enum": 5}}}, "'#/properties/a' 'enum' is not an array"),
        ({"enum": None}, "'enum' is not an array"),
        ({"required": 5}, "'required' is not an array"),
        ({"$defs": [], "$ref": "#/$defs/a"}, r"'\$defs' is not an object"),
        ({"additionalProperties": "x"}, "'additionalProperties' is not a schema"),
        ({"properties": {"a": {"minLength": True}}}, "'minLength' is not a number"),
        ({"items": {"pattern": 5}}, "'#/items' 'pattern' is not a string"),
    ],
)
def test_schemas_of_the_wrong_form_are_refused(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        check_schema(schema, "tools[0].function.parameters")
    assert (caught.value.status, caught.value.param) == (400, "tools[0].function.parameters")


def test_properties_may_be_named_like_keywords() -> None:
    names = ("enum", "required", "pattern", "properties", "items", "$ref", "type")
    check_schema({"properties": {name: {"type": "string", "default": {"enum": 5}} for name in names}}, "x")
