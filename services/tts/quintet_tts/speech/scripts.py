"""Which writings a text is in: what decides on a voice that can read it."""

from __future__ import annotations

import re
from enum import StrEnum


class Script(StrEnum):
    LATIN = "Latin"
    HAN = "Chinese (Han)"
    KANA = "Japanese (kana)"
    HANGUL = "Korean (Hangul)"
    CYRILLIC = "Cyrillic"
    GREEK = "Greek"
    ARABIC = "Arabic"
    DEVANAGARI = "Devanagari"
    OTHER = "other"
    """Letters of none of these."""


# Unicode blocks. Half-width kana and the ideographic iteration mark belong to their scripts.
HAN = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
HANGUL = r"\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb"
_LATIN = r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff"
_CYRILLIC = r"\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f"
_GREEK = r"\u0370-\u03ff\u1f00-\u1fff"
_ARABIC = r"\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc"
_DEVANAGARI = r"\u0900-\u097f\ua8e0-\ua8ff"

_NAMED = {
    Script.LATIN: re.compile(f"[{_LATIN}]"),
    Script.HAN: re.compile(f"[{HAN}]"),
    Script.KANA: re.compile(f"[{KANA}]"),
    Script.HANGUL: re.compile(f"[{HANGUL}]"),
    Script.CYRILLIC: re.compile(f"[{_CYRILLIC}]"),
    Script.GREEK: re.compile(f"[{_GREEK}]"),
    Script.ARABIC: re.compile(f"[{_ARABIC}]"),
    Script.DEVANAGARI: re.compile(f"[{_DEVANAGARI}]"),
}
_LANGUAGES = {
    Script.HAN: "zh cmn yue ja",
    Script.KANA: "ja",
    Script.HANGUL: "ko",
    Script.CYRILLIC: "ru uk be bg kk ky mk sr ba tt cv mn",
    Script.GREEK: "el grc",
    Script.ARABIC: "ar fa ur sd ug",
    Script.DEVANAGARI: "hi mr ne kok sa",
    Script.OTHER: "am as bn gu he hy ka kn ml my or pa si ta te th chr",
}
"""By the first part of a language's name, as BCP 47 and espeak-ng write it; any other is written in Latin letters."""
_ALL = _LATIN + HAN + KANA + HANGUL + _CYRILLIC + _GREEK + _ARABIC + _DEVANAGARI
OTHER_LETTER = re.compile(rf"[^\W\d_{_ALL}\u02b0-\u02ff\u00b5\u00b2\u00b3\u00bc-\u00be]")
"""A letter or a number of ``Script.OTHER``. Engines have words for ``² ³ ¼ ½ ¾``, as for digits."""

_SPEAKABLE = re.compile(r"[^\W_]")


def scripts_in(text: str) -> frozenset[Script]:
    """The scripts of the letters in ``text``; digits, signs and punctuation belong to none."""
    found = {script for script, pattern in _NAMED.items() if pattern.search(text)}
    if OTHER_LETTER.search(text):
        found.add(Script.OTHER)
    return frozenset(found)


def scripts_of_language(language: str) -> frozenset[Script]:
    """What a voice of a language reads: its own writing, and Latin, whose words are in texts of every language."""
    name = re.split(r"[-_]", language)[0].lower()
    return frozenset({script for script, names in _LANGUAGES.items() if name in names.split()} | {Script.LATIN})


def speakable(text: str) -> bool:
    """Whether there is a letter or a digit."""
    return _SPEAKABLE.search(text) is not None
