"""wetext's normalizers with their rough edges off: they come with their rules, and need neither network nor torch."""

from __future__ import annotations

import re
import threading
from typing import Any, Literal

from wetext import Normalizer

_FOREIGN = re.compile(r"(\s*\S*[^\x00-\x7f]\S*\s*)")
"""A word that has other letters than English, and the spaces around it."""


class Wetext:
    """Dates, amounts and units of a language in words. Shared by all threads."""

    def __init__(self, language: Literal["zh", "en"]) -> None:
        options: dict[str, Any] = {"remove_erhua": False} if language == "zh" else {}
        self._normalizer = Normalizer(lang=language, operator="tn", **options)
        self._lock = threading.Lock()

    def normalize(self, text: str) -> str:
        try:
            return self._normalize(text)
        except AssertionError:
            # A number beside a foreign letter is too much for the English rules: such words are left as they are.
            return "".join(self._or_unchanged(part) for part in _FOREIGN.split(text))

    def _or_unchanged(self, part: str) -> str:
        if not part.strip() or _FOREIGN.fullmatch(part):
            return part
        try:
            return self._normalize(part)
        except AssertionError:
            return part

    def _normalize(self, text: str) -> str:
        with self._lock:
            normal: str = self._normalizer.normalize(text)
        if normal.count("\\") > text.count("\\"):
            # The marks that it puts before quotes for its own reading, and forgets to take away.
            normal = re.sub(r'\\(["\\])', r"\1", normal)
        return normal
