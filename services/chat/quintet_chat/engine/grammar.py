"""Answers that match a grammar by construction: compilation (off the model thread) and masks (on it).

Whitespace between JSON elements is at most one character: small models otherwise spend their tokens on it.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import xgrammar
from quintet_common.errors import ApiError

from quintet_chat.engine.request import Sequence
from quintet_chat.protocol import Grammar

CACHE_BYTES = 64 << 20
_ANY_OBJECT = {"type": "object", "additionalProperties": True}


class Grammars:
    """Compiles grammars for one tokenizer and keeps those used lately. For one thread."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._stop_ids = sorted(stop_ids)
        self._compiler: xgrammar.GrammarCompiler | None = None

    def compile(self, grammar: Grammar) -> Any:
        """An ``xgrammar.CompiledGrammar``; ApiError 400 for what cannot be compiled."""
        if self._compiler is None:
            info = xgrammar.TokenizerInfo.from_huggingface(
                self._tokenizer, vocab_size=self._vocabulary, stop_token_ids=self._stop_ids
            )
            self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=CACHE_BYTES)
        try:
            return self._compile(self._compiler, grammar)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            what = "tools" if grammar.type == "structural_tag" else "response_format"
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            message = f"The answer cannot be constrained to this {grammar.type}: {reason}"
            raise ApiError(400, message, param=what, code="invalid_grammar") from None

    @staticmethod
    def _compile(compiler: xgrammar.GrammarCompiler, grammar: Grammar) -> Any:
        value = grammar.value
        if grammar.type == "structural_tag":
            return compiler.compile_structural_tag(json.dumps(_tight(value)))
        if grammar.type == "regex":
            return compiler.compile_regex(value)
        if grammar.type == "ebnf":
            return compiler.compile_grammar(value)
        schema = _ANY_OBJECT if grammar.type == "json_object" else value
        return compiler.compile_json_schema(json.dumps(_open_objects(schema)), max_whitespace_cnt=1)


def matcher(compiled: Any) -> Any:
    """A fresh ``xgrammar.GrammarMatcher`` at the grammar's start."""
    return xgrammar.GrammarMatcher(compiled)


def mask(logits: torch.Tensor, sequences: list[Sequence]) -> None:
    """Set what the grammars of the sequences forbid to minus infinity, in place; rows without a grammar stay."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.matcher is not None]
    if not rows:
        return
    bitmask = xgrammar.allocate_token_bitmask(len(sequences), logits.shape[1])
    for row in rows:
        sequences[row].matcher.fill_next_token_bitmask(bitmask, row)
    xgrammar.apply_token_bitmask_inplace(logits, bitmask.to(logits.device), indices=rows)


def _tight(node: Any) -> Any:
    """A structural tag whose JSON parts have bounded whitespace and objects that may have members."""
    if isinstance(node, list):
        return [_tight(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "json_schema" and "json_schema" in node:
        return {"max_whitespace_cnt": 1, **node, "json_schema": _open_objects(node["json_schema"])}
    return {key: _tight(value) for key, value in node.items()}


def _open_objects(schema: Any) -> Any:
    """A schema in which an object without any word on its properties may have any.

    The compiler forbids whatever a schema does not name; for ``{"type": "object"}`` that would leave only ``{}``.
    """
    if isinstance(schema, list):
        return [_open_objects(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {
        key: value if key in ("enum", "const", "default") else _open_objects(value) for key, value in schema.items()
    }
    silent = (
        not {"properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "$ref"} & schema.keys()
    )
    if schema.get("type") == "object" and silent and not {"allOf", "anyOf", "oneOf"} & schema.keys():
        opened["additionalProperties"] = True
    return opened
