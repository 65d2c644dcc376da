"""What xgrammar makes of a structural tag format."""

from __future__ import annotations

import json
from typing import Any

import pytest


class Accepts:
    """Whether xgrammar's compiled format accepts a text as a whole answer."""

    def __init__(self) -> None:
        self._xgrammar = pytest.importorskip("xgrammar")
        letters = [chr(code) for code in range(32, 127)] + ["\n", "｜", "▁", "猫", "</s>"]
        self._end = len(letters) - 1
        self._compiler = self._xgrammar.GrammarCompiler(
            self._xgrammar.TokenizerInfo(letters, stop_token_ids=[self._end]), max_threads=1
        )

    def __call__(self, tool_format: dict[str, Any], text: str) -> bool:
        tag = json.dumps({"type": "structural_tag", "format": tool_format})
        matcher = self._xgrammar.GrammarMatcher(self._compiler.compile_structural_tag(tag))
        return bool(matcher.accept_string(text) and matcher.accept_token(self._end))
