"""What grammars cost the chat service, in CPU time on one thread, with the vocabulary of the embedded model (49k).

    python bench/chat/grammars.py

Compiling the largest schemas that are taken (``api/schema_limits.py``); the masks of a step; and what a step takes in
the grammar of a custom tool. These are the figures of docs/chat.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import xgrammar
from quintet_chat.api import schema_limits as limits
from quintet_chat.backends import embedded
from quintet_chat.engine import masks
from quintet_chat.engine.grammar import Grammars
from quintet_chat.protocol import Grammar
from quintet_chat.tools import FAMILIES
from quintet_chat.tools.base import ToolFunction, input_format
from quintet_chat.tools.custom import function_of

REPEATS = 200

PATCH = """
start: "*** Begin Patch" LF hunk+ "*** End Patch" LF?
hunk: "*** Add File: " NAME LF ("+" LINE LF)+ | "*** Delete File: " NAME LF | "*** Update File: " NAME LF change+
change: "@@" LINE LF ((" " | "+" | "-") LINE LF)+
NAME: /[^\\n]+/
LINE: /[^\\n]*/
%import common.LF
"""
PATCHED = (
    "*** Begin Patch\n*** Update File: a/b.py\n@@ def f():\n" + "-    return 1\n+    return 2\n" * 20 + "*** End Patch"
)
SUM = 'start: part (("+"|"-") part)*\npart: one (("*"|"/") one)*\none: /[0-9]+/ | "(" start ")"'
SUMMED = "+".join(["(12*(3-4))/5"] * 30)
WORDS = 'start: "select" WORD ("," WORD)* "from" WORD\nWORD: /[a-z]+/\n%import common.WS\n%ignore WS'
SELECTED = "select " + ", ".join(["cat", "mat", "name"] * 20) + " from the"
LETTERS = 'start: LETTER+ "."\nLETTER: /[a-z]/\n%import common.WS\n%ignore WS'
SAID = " ".join(["the cat sat on the mat"] * 12) + "."


def largest() -> dict[str, Any]:
    """A schema at each limit."""
    nested: dict[str, Any] = {"type": "integer"}
    while _levels(nested) + 2 <= limits.MAX_DEPTH - 1:
        nested = {"type": "object", "properties": {"a": nested}}
    many = limits.MAX_OPTIONAL
    return {
        "levels": nested,
        "bytes, a list of values": {"enum": [f"value {number:06}" for number in range(15_000)]},
        "bytes, one constant": {"const": "x" * (limits.MAX_BYTES - 100)},
        "properties": _object(_strings(limits.MAX_PROPERTIES), required=limits.MAX_PROPERTIES),
        "properties that may be left out": _object(_strings(many)),
        "the same, one in six an object": _object(
            {f"p{at}": {"type": "string"} if at % 6 else _object(_strings(5)) for at in range(many)}
        ),
        "a pattern": {"type": "string", "pattern": f"[a-z]{{{limits.MAX_PATTERN}}}"},
        "patterns together": _object(
            {
                f"p{at}": {"type": "string", "pattern": f"[a-{'wxyz'[at]}]{{{limits.MAX_PATTERN}}}"}
                for at in range(limits.MAX_PATTERNS // limits.MAX_PATTERN)
            }
        ),
        "lengths": _object(
            {f"p{at}": {"type": "string", "maxLength": 1000 + 100 * at} for at in range(limits.MAX_LONG)}
        ),
    }


def _levels(schema: Any) -> int:
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return 1 + max(map(_levels, inner), default=0)


def _strings(count: int) -> dict[str, Any]:
    return {f"q{at}": {"type": "string"} for at in range(count)}


def _object(properties: dict[str, Any], required: int = 0) -> dict[str, Any]:
    names = list(properties)[:required]
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def tools() -> Grammar:
    """128 functions with 20 parameters of common kinds each."""
    kinds = [{"type": "string"}, {"type": "integer"}, {"enum": ["a", "b", "c"]}, {"type": "boolean"}]
    parameters = _object({f"p{at}": kinds[at % len(kinds)] for at in range(20)}, required=10)
    functions = [ToolFunction(f"tool_{number}", parameters) for number in range(128)]
    form = {"type": "structural_tag", "format": FAMILIES["hermes"].calls(functions, several=True)}
    return Grammar(type="structural_tag", value=form)


def spent(work: Callable[[], object]) -> float:
    """CPU seconds of the process."""
    before = time.process_time()
    work()
    return time.process_time() - before


def compiling(grammars: Grammars) -> None:
    print("compile, CPU seconds")
    for name, schema in largest().items():
        limits.check_schema(schema, name)
        seconds = spent(lambda schema=schema: grammars.compile(Grammar(type="json_schema", value=schema)))  # type: ignore[misc]
        print(f"  {name:40}{seconds:8.2f}")
    print(f"  {'128 tools with 20 parameters':40}{spent(lambda: grammars.compile(tools())):8.2f}")


def masking(grammars: Grammars, vocabulary: int) -> None:
    print("masks of a step, CPU milliseconds: filled; written into the logits; the same by xgrammar")
    compiled = grammars.compile(Grammar(type="json_schema", value=_object(_strings(5), required=5)))
    for rows in (8, 32):
        sequences: list[Any] = [SimpleNamespace(matcher=compiled.matcher()) for _ in range(rows)]
        logits = torch.randn(rows, vocabulary)
        bitmask = xgrammar.allocate_token_bitmask(rows, vocabulary)

        def fill(sequences: list[Any] = sequences, bitmask: torch.Tensor = bitmask) -> None:
            for row, sequence in enumerate(sequences):
                sequence.matcher.fill(bitmask, row)

        every = list(range(rows))
        ways: list[Callable[[], object]] = [
            fill,
            lambda logits=logits, bitmask=bitmask, every=every: masks.apply(logits, bitmask, every),  # type: ignore[misc]
            lambda logits=logits, bitmask=bitmask: xgrammar.apply_token_bitmask_inplace(logits, bitmask),  # type: ignore[misc]
        ]
        figures = [min(spent(way) for _ in range(REPEATS)) * 1000 for way in ways]
        print(f"  {rows:3} sequences" + "".join(f"{figure:8.2f}" for figure in figures))


def stepping(grammars: Grammars, tokenizer: Any, vocabulary: int) -> None:
    print("a token in the grammar of a custom tool, CPU milliseconds: mean, most")
    cases = {
        "patches": (PATCH, PATCHED),
        "sums with brackets": (SUM, SUMMED),
        "%ignore WS between words": (WORDS, SELECTED),
        "%ignore WS between letters": (LETTERS, SAID),
    }
    bitmask = xgrammar.allocate_token_bitmask(1, vocabulary)
    for name, (definition, text) in cases.items():
        function = function_of("tool", "lark", definition)
        assert function.ebnf is not None
        form = {"type": "structural_tag", "format": input_format(function.ebnf)}
        matcher = grammars.compile(Grammar(type="structural_tag", value=form)).matcher()
        seconds = []
        for token in tokenizer(json.dumps(text))["input_ids"]:
            before = time.thread_time()
            matcher.fill(bitmask, 0)
            allowed = int(bitmask[0, token // 32]) >> token % 32 & 1
            assert allowed, f"{name}: {tokenizer.decode([token])!r} is not allowed"
            matcher.accept(token)
            seconds.append(time.thread_time() - before)
        print(f"  {name:40}{1000 * sum(seconds) / len(seconds):8.2f}{1000 * max(seconds):8.2f}")


def main() -> None:
    torch.set_num_threads(1)
    path = embedded.directory(embedded.SMOLLM2, lambda _fraction, _note: None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    vocabulary = len(tokenizer)
    grammars = Grammars(tokenizer, vocabulary, frozenset({tokenizer.eos_token_id}))
    grammars.compile(Grammar(type="json_object"))  # reads the vocabulary
    compiling(grammars)
    masking(grammars, vocabulary)
    stepping(grammars, tokenizer, vocabulary)
    grammars.close()


if __name__ == "__main__":
    main()
