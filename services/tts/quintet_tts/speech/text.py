"""The text as it is spoken: nothing that is not text, nothing that would be read a thousand times."""

from __future__ import annotations

import re
import unicodedata

from quintet_tts.speech.scripts import OTHER_LETTER

# Also what espeak-ng would take for commands. Line breaks and tabs are kept.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
_SIGN = r"(?:[^\w\s]|_)"
_SIGNS = re.compile(rf"({_SIGN}(?:\s*{_SIGN}){{7}})(?:\s*{_SIGN})+")
_FULL_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}

_MAX_MARKS = 30
"""Combining marks in a row, as in Unicode's stream-safe text: to put n of them in order takes n squared steps."""


def cleaned(text: str) -> str:
    """NFC, line breaks as ``\\n``, letters and digits of odd forms as plain ones, no controls, no towers of marks."""
    text = re.sub(r"\r\n?|[\u2028\u2029\x85\x0b\x0c]", "\n", unicodedata.normalize("NFC", _few_marks(text)))
    text = _CONTROLS.sub("", text).translate(_FULL_WIDTH)
    return text if text.isascii() else OTHER_LETTER.sub(_plain, text)


def _plain(found: re.Match[str]) -> str:
    """A letter that no voice reads as what it stands for, if that can be read: ﬁ as fi, ① as 1, ⅔ as 2/3."""
    plain = unicodedata.normalize("NFKC", found[0]).replace("⁄", "/")
    if OTHER_LETTER.search(plain):
        return found[0]
    before = found.string[max(0, found.start() - 1) : found.start()]
    return f" {plain}" if before.isnumeric() and plain[0].isnumeric() else plain  # 1⅔ is not 12/3


def _few_marks(text: str) -> str:
    if text.isascii():
        return text
    kept, marks = [], 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks <= _MAX_MARKS:
            kept.append(char)
    return "".join(kept)


def spoken(piece: str) -> str:
    """A piece on one line, with at most eight signs in a row."""
    return " ".join(_SIGNS.sub(r"\1 ", piece).split())
