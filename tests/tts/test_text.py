"""The text before it is split."""

from __future__ import annotations

import pytest
from quintet_tts.speech.scripts import Script, scripts_in
from quintet_tts.speech.text import cleaned


def test_a_tower_of_marks_is_cut_to_what_unicode_calls_stream_safe() -> None:
    """Put in order whole, these marks would take many seconds."""
    assert cleaned("x" + "\u0316\u0301" * 99_000 + "yz") == "x" + "\u0316" * 15 + "\u0301" * 15 + "yz"


def test_marks_of_ordinary_writing_are_kept() -> None:
    assert cleaned("e\u0301te\u0301 ") == "été "
    assert cleaned("Việt, नमस्ते, สวัสดี") == "Việt, नमस्ते, สวัสดี"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\ufb01ne o\ufb03ce", "fine office"),
        ("CO\u2082 and 10\u2076", "CO2 and 10 6"),
        ("\u2460\u2461 \u2474", "1 2 (1)"),
        ("\u2153 cup, 1\u2154", "1/3 cup, 1 2/3"),
        ("\u2163 and \U0001d4d7\U0001d4ee", "IV and He"),
        ("5 m\u00b2, x\u00b3, 1\u00bd", "5 m\u00b2, x\u00b3, 1\u00bd"),
    ],
)
def test_letters_of_odd_forms_are_read_as_what_they_stand_for(text: str, plain: str) -> None:
    assert cleaned(text) == plain
    assert scripts_in(plain) <= {Script.LATIN}
