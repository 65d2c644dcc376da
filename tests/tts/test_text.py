"""The text before it is split."""

from __future__ import annotations

from quintet_tts.speech.text import cleaned


def test_a_tower_of_marks_is_cut_to_what_unicode_calls_stream_safe() -> None:
    """Put in order whole, these marks would take many seconds."""
    assert cleaned("x" + "\u0316\u0301" * 99_000 + "yz") == "x" + "\u0316" * 15 + "\u0301" * 15 + "yz"


def test_marks_of_ordinary_writing_are_kept() -> None:
    assert cleaned("e\u0301te\u0301 ") == "été "
    assert cleaned("Việt, नमस्ते, สวัสดี") == "Việt, नमस्ते, สวัสดี"
