"""Answers under a grammar are valid however hot the sampling and however random the model."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from chat.engine_kit import ask, submit, tiny_engine
from quintet_chat.engine.grammar import _open_objects
from quintet_chat.engine.masks import apply
from quintet_chat.protocol import Grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "spots": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "kind", "age", "spots"],
    "additionalProperties": False,
}
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "sequence",
        "elements": [
            {"type": "const_string", "value": "<call>"},
            {"type": "json_schema", "json_schema": SCHEMA},
            {"type": "const_string", "value": "</call>"},
        ],
    },
}


def answer(kind: Any, value: Any = None, temperature: float = 1.6, **fields: Any) -> str:
    grammar = Grammar(type=kind, value=value)
    heard = ask(tiny_engine(), "the cat", grammar=grammar, temperature=temperature, max_tokens=300, **fields)
    assert heard.reasons[0] == "stop"
    return heard.text()


def check(value: Any) -> None:
    assert value.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
    assert len(value["name"]) <= 8
    assert value["kind"] in ("cat", "dog")
    assert 0 <= value["age"] <= 120
    assert all(isinstance(spot, bool) for spot in value["spots"])


@pytest.mark.parametrize("temperature", [0.0, 1.6, 2.0])
def test_an_answer_matches_its_schema(temperature: float) -> None:
    for seed in range(4):
        check(json.loads(answer("json_schema", SCHEMA, temperature, seed=seed)))


def test_a_structural_tag_holds_its_json_and_its_marks() -> None:
    text = answer("structural_tag", TAG)
    match = re.fullmatch(r"<call>(.*)</call>", text, re.DOTALL)
    assert match
    check(json.loads(match[1]))


def test_a_regex_and_an_ebnf_are_matched_whole() -> None:
    assert re.fullmatch("(cat|dog){2,3}[0-9]", answer("regex", "(cat|dog){2,3}[0-9]"))
    assert answer("ebnf", 'root ::= "yes" | "no" ("!" | "?")') in ("yes", "no!", "no?")


def test_a_json_object_may_have_any_members() -> None:
    heard = ask(tiny_engine(), "the", grammar=Grammar(type="json_object"), temperature=1.0, max_tokens=40, seed=1)
    assert heard.text().startswith("{")
    forced = {tiny_engine()._output._tokenizer.convert_tokens_to_ids("}"): 100.0}
    assert json.loads(answer("json_object", logit_bias=forced)) == {}


def test_whitespace_cannot_fill_an_answer() -> None:
    space = tiny_engine()._output._tokenizer.convert_tokens_to_ids("Ġ")
    text = answer("json_schema", SCHEMA, logit_bias={space: 8.0})
    check(json.loads(text))
    assert not re.search(r"[,:\[{]\s\s", text)


def test_constrained_and_free_requests_share_a_batch() -> None:
    grammar = Grammar(type="json_schema", value=SCHEMA)
    free = [submit(tiny_engine(), "the cat", temperature=0, max_tokens=20, ignore_eos=True)[1] for _ in range(3)]
    bound = [submit(tiny_engine(), "cat", grammar=grammar, temperature=1.5, max_tokens=300)[1] for _ in range(3)]
    alone = ask(tiny_engine(), "the cat", temperature=0, max_tokens=20, ignore_eos=True).text()
    for heard in bound:
        check(json.loads(heard.wait().text()))
    assert [heard.wait().text() for heard in free] == [alone] * 3


def test_each_choice_has_its_own_place_in_the_grammar() -> None:
    grammar = Grammar(type="json_schema", value=SCHEMA)
    heard = ask(tiny_engine(), "the cat", grammar=grammar, temperature=1.5, max_tokens=300, n=3)
    for index in range(3):
        check(json.loads(heard.text(index)))


def test_the_end_of_the_grammar_wins_over_min_tokens() -> None:
    assert answer("regex", "cat", min_tokens=50) == "cat"


def test_objects_without_a_word_on_members_are_opened_and_others_left() -> None:
    assert _open_objects({"type": "object"}) == {"type": "object", "additionalProperties": True}
    assert _open_objects(SCHEMA) == SCHEMA
    nested = {"type": "object", "properties": {"any": {"type": "object"}}}
    assert _open_objects(nested)["properties"]["any"]["additionalProperties"] is True
    assert _open_objects({"enum": [{"type": "object"}]}) == {"enum": [{"type": "object"}]}


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.9, 1])
@pytest.mark.parametrize("width", [96, 100, 127, 279])
def test_masks_are_applied_however_much_they_forbid(share: float, width: int) -> None:
    torch.manual_seed(0)
    allowed = torch.rand(4, width) < share
    words = -(-width // 32)
    bits = np.packbits(np.pad(allowed.numpy(), ((0, 0), (0, 32 * words - width))), axis=1, bitorder="little")
    memory = torch.randn(4 * width + 32)  # what lies behind the logits is not theirs
    logits, behind = memory[: 4 * width].view(4, width), memory[4 * width :].clone()
    expected = logits.masked_fill(~allowed, float("-inf"))
    expected[1] = logits[1]
    apply(logits, torch.from_numpy(bits.view(np.int32).copy()), [0, 2, 3])
    assert torch.equal(logits, expected)
    assert torch.equal(memory[4 * width :], behind)
