"""Random schemas, a random model, temperature 2: what finishes is valid, what is cut says so. Always.

A few seconds of it run with every test; ``QUINTET_FUZZ=600 pytest tests/chat/test_fuzz.py`` runs ten minutes of each,
``QUINTET_FUZZ_SEED`` begins elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from typing import Any

from chat.engine_kit import Heard, submit, tiny_engine
from chat.schemas import problem_of, random_object, random_schema
from quintet_chat.protocol import Grammar
from quintet_chat.tools import FAMILIES
from quintet_chat.tools.base import CallArguments, CallStart, Piece, Reasoning, Text, ToolFunction
from quintet_common.errors import ApiError

SECONDS = float(os.environ.get("QUINTET_FUZZ", "4"))
SEED = int(os.environ.get("QUINTET_FUZZ_SEED", "1"))
BATCH = 16
MAX_TOKENS = 250


def rounds(salt: int) -> Iterator[random.Random]:
    """Random numbers for one batch after another, until the time is over; the first batch runs in any case."""
    end = time.monotonic() + SECONDS
    draw = random.Random(SEED * 1000 + salt)
    yield draw
    while time.monotonic() < end:
        yield draw


def asked(draw: random.Random, grammar: Grammar) -> Heard:
    seed = draw.randrange(2**31)
    return submit(tiny_engine(), "the cat", grammar=grammar, temperature=2.0, seed=seed, max_tokens=MAX_TOKENS)[1]


def refused(heard: Heard) -> bool:
    """Whether the schema cannot be a grammar, which must be said as a 400."""
    error: ApiError | None = heard.wait().error
    assert error is None or (error.status, error.code) == (400, "invalid_grammar"), error
    return error is not None


def is_whole(heard: Heard) -> bool:
    """Whether an answer came to its end; one that did not has used all of its tokens."""
    reason = heard.reasons[0]
    assert reason == "stop" or heard.tokens() == MAX_TOKENS
    return reason == "stop"


def test_whatever_finishes_matches_its_schema() -> None:
    finished = total = 0
    for draw in rounds(1):
        schemas = [random_schema(draw) for _ in range(BATCH)]
        answers = [asked(draw, Grammar(type="json_schema", value=schema)) for schema in schemas]
        for schema, heard in zip(schemas, answers, strict=True):
            total += 1
            if refused(heard) or not is_whole(heard):
                continue
            finished += 1
            problem = problem_of(json.loads(heard.text()), schema)
            assert problem is None, (problem, schema, heard.text())
    assert finished > total / 2, (finished, total)


def functions(draw: random.Random) -> list[ToolFunction]:
    names = draw.sample(["get_weather", "add", "search.web", "f-1", "F2"], draw.randint(1, 3))
    return [ToolFunction(name, random_object(draw)) for name in names]


def read(parser: Any, text: str, cuts: list[int]) -> tuple[str, str, list[tuple[str, str]]]:
    """Text, thoughts and calls, the text fed in pieces."""
    pieces: list[Piece] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pieces += parser.feed(text[start:end])
    pieces += parser.close()
    calls = [[piece.name, ""] for piece in pieces if isinstance(piece, CallStart)]
    for piece in pieces:
        if isinstance(piece, CallArguments):
            calls[piece.index][1] += piece.text
    said = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    thought = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    return said, thought, [(name, arguments) for name, arguments in calls]


def test_whatever_call_finishes_matches_its_function() -> None:
    """Forced calls of every family, one or several."""
    finished = 0
    for draw in rounds(2):
        for family in FAMILIES.values():
            offered = functions(draw)
            several = draw.random() < 0.5
            tag = {"type": "structural_tag", "format": family.calls(offered, several)}
            answers = [asked(draw, Grammar(type="structural_tag", value=tag)) for _ in range(2)]
            for heard in answers:
                if refused(heard) or not is_whole(heard):
                    continue
                finished += 1
                text, _, calls = read(family.parser(offered), heard.text(), [])
                assert not text, (family.name, heard.text())
                assert calls, (family.name, heard.text())
                assert several or len(calls) == 1
                for name, arguments in calls:
                    (function,) = (each for each in offered if each.name == name)
                    problem = problem_of(json.loads(arguments), function.parameters)
                    assert problem is None, (family.name, problem, function, arguments)
    assert finished >= len(FAMILIES) / 2


FRAGMENTS = ["hello", " ", "\n", "{", "}", '"', "\\", "[1, 2]", "get_weather", "get_weather\n", "add\n", "<", "<|"]


def test_however_a_text_is_cut_it_is_read_the_same() -> None:
    """Calls, pieces of calls, marks and words in any order; also, no letter of a text without calls is lost."""
    offered = [ToolFunction("get_weather", {}), ToolFunction("add", {})]
    for draw in rounds(3):
        for family in FAMILIES.values():
            calls = [family.call_text(draw.choice(["get_weather", "add", "other"]), '{"a": "} \\" {"}') for _ in "ab"]
            parts = [*FRAGMENTS, *family.marks, *calls, calls[0][: draw.randrange(len(calls[0]))]]
            text = "".join(draw.choices(parts, k=draw.randint(1, 8)))
            whole = read(family.parser(offered), text, [])
            for _ in range(4):
                cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(1, 6)))
                assert read(family.parser(offered), text, cuts) == whole, (family.name, text, cuts)
            assert read(family.parser(offered), text, list(range(1, len(text)))) == whole, (family.name, text)
            plain = "".join(draw.choices([*FRAGMENTS[:8], *FRAGMENTS[-2:]], k=6))
            assert read(family.parser(offered), plain, [len(plain) // 2]) == (plain, "", []), (family.name, plain)
