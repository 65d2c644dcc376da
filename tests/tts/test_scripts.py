"""What a text is written in, and what of it is spoken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quintet_tts.speech.scripts import Script, scripts_in, scripts_of_language, speakable
from quintet_tts.speech.text import cleaned, spoken


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("Hello, Zoë!", {Script.LATIN}),
        ("你好，世界", {Script.HAN}),
        ("カタカナ と ひらがな", {Script.KANA}),
        ("안녕 GPU", {Script.HANGUL, Script.LATIN}),
        ("привет", {Script.CYRILLIC}),
        ("Καλημέρα", {Script.GREEK}),
        ("السلام عليكم", {Script.ARABIC}),
        ("नमस्ते", {Script.DEVANAGARI}),
        ("สวัสดี", {Script.OTHER}),
        ("12 + 30 % — …", set()),
        ("𠮷", {Script.HAN}),
    ],
)
def test_scripts(text: str, scripts: set[Script]) -> None:
    assert scripts_in(text) == scripts


@pytest.mark.parametrize(
    ("language", "scripts"),
    [
        ("en-us", {Script.LATIN}),
        ("xx", {Script.LATIN}),
        ("cmn", {Script.HAN, Script.LATIN}),
        ("ja-JP", {Script.HAN, Script.KANA, Script.LATIN}),
        ("uk", {Script.CYRILLIC, Script.LATIN}),
        ("th", {Script.OTHER, Script.LATIN}),
    ],
)
def test_what_a_voice_of_a_language_reads(language: str, scripts: set[Script]) -> None:
    assert scripts_of_language(language) == scripts


@given(st.text())
def test_every_letter_has_a_script(text: str) -> None:
    letters = any(char.isalpha() and char not in "µ" and not 0x2B0 <= ord(char) <= 0x2FF for char in text)
    assert bool(scripts_in(text)) >= letters


def test_what_can_be_spoken() -> None:
    assert speakable("…1")
    assert not speakable(" _…!😀\n")


def test_control_characters_never_reach_an_engine() -> None:
    assert cleaned("a\x00b\x01+5c\u202ed\ufeff\r\ne\u2028f") == "ab+5cd\ne\nf"


def test_full_width_letters_are_letters() -> None:
    assert cleaned("ＡＢＣ１２３，") == "ABC123，"


def test_rows_of_signs_are_not_read_a_thousand_times() -> None:
    assert spoken("Stop" + "!" * 5000 + " now\n") == "Stop!!!!!!!! now"
    assert spoken("a" + "\u0301" * 5000) == "a" + "\u0301" * 8
    assert spoken("Well... “yes”?") == "Well... “yes”?"
