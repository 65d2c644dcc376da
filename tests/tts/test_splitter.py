"""Sentences: nothing lost, nothing too long, the first one short."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quintet_tts.speech import splitter
from quintet_tts.speech.scripts import speakable
from quintet_tts.speech.splitter import FIRST_WEIGHT, MAX_WEIGHT, sentences, split, weight

WORDS = st.sampled_from(
    [
        *("Hello", "world", "3.14", "1,000", "Dr.", "e.g.", "U.S.", "I", "J.", "no", "é", "👋", "%", "x" * 200),
        *("你好", "世界", "こんにちは", "안녕하세요", "。", "，", "！", "”", "中" * 90),
        *(".", "!", "?", ",", ";", "…", "\n", "\n\n", " ", "  ", "\t", "(", ")", "—"),
    ]
)


@given(st.one_of(st.text(), st.lists(WORDS).map("".join), st.lists(WORDS).map(" ".join)))
def test_the_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(split(text)) == text


@given(st.lists(WORDS, min_size=1).map(" ".join))
def test_every_piece_can_be_spoken_and_is_short_enough(text: str) -> None:
    pieces = split(text)
    for piece in pieces:
        assert speakable(piece) or len(pieces) == 1
        # What is attached to a piece beyond the limit is punctuation, which makes no sound.
        assert weight("".join(char for char in piece if char.isalnum())) <= MAX_WEIGHT


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("Dr. Smith met Mr. Jones at 3.14 p.m. sharp.", ["Dr. Smith met Mr. Jones at 3.14 p.m. sharp."]),
        ("See No. 5 and e.g. J. K. Rowling. Then go.", ["See No. 5 and e.g. J. K. Rowling. ", "Then go."]),
        ("No. I will not. It was I. You know.", ["No. ", "I will not. ", "It was I. ", "You know."]),
        ("It costs 1,234.56 dollars.", ["It costs 1,234.56 dollars."]),
        ("He said “Go.” Then he left.", ["He said “Go.” ", "Then he left."]),
        ("Wait... what? Yes...", ["Wait... what? ", "Yes..."]),
        ("你好。今天天气很好！真的吗？是。", ["你好。", "今天天气很好！", "真的吗？", "是。"]),
        ("他说：“你好。”然后走了。", ["他说：“你好。”", "然后走了。"]),
        ("こんにちは。元気ですか？", ["こんにちは。", "元気ですか？"]),
        ("नमस्ते। आप कैसे हैं? मैं ठीक हूँ।", ["नमस्ते। ", "आप कैसे हैं? ", "मैं ठीक हूँ।"]),
        (
            "\u0643\u064a\u0641\u061f \u062c\u064a\u062f\u06d4 ",
            ["\u0643\u064a\u0641\u061f ", "\u062c\u064a\u062f\u06d4 "],
        ),
        ("A title\n\nA paragraph.", ["A title\n\n", "A paragraph."]),
        ("A line that is\nwrapped here.", ["A line that is\nwrapped here."]),
        ("- milk\n- 2 eggs", ["- milk\n", "- 2 eggs"]),
        ("Version 2.0.1 is at example.com/a.b now.", ["Version 2.0.1 is at example.com/a.b now."]),
    ],
)
def test_sentences_of_several_languages(text: str, pieces: list[str]) -> None:
    assert list(sentences(text)) == pieces


def test_a_long_first_sentence_is_cut_at_its_first_clause() -> None:
    text = "When the rain had stopped, the children who had waited all day long ran out into the garden to play."
    assert split(text)[0] == "When the rain had stopped, "
    chinese = "有时,我会静静地坐在庭院里，看着落叶飘飞，感慨万千，青春无痕，日子如白驹过隙。"
    assert weight(split(chinese)[0]) <= FIRST_WEIGHT


def test_a_short_first_sentence_is_left_whole() -> None:
    assert split("Well, hello there, friend.") == ["Well, hello there, friend."]


@pytest.mark.parametrize("unit", ["word ", "词", "ことば", "x"])
def test_a_long_text_without_punctuation_is_cut_and_kept(unit: str) -> None:
    text = unit * (20_000 // len(unit))
    begun = time.process_time()
    pieces = split(text)
    assert time.process_time() - begun < 5  # 0.1 on a quiet machine; in quadratic time a minute
    assert "".join(pieces) == text
    assert max(map(weight, pieces)) <= MAX_WEIGHT
    assert len(pieces) < 2.2 * weight(text) / MAX_WEIGHT


def test_words_are_not_cut_where_there_are_spaces() -> None:
    pieces = split("antidisestablishmentarianism " * 50)
    assert all(piece.endswith("ism ") for piece in pieces)


@pytest.mark.parametrize("run", [".", "…", "?!", " ", "\n", ". ", '."', '"', ',"', "。 ", "\u0301", "-\n"])
def test_a_long_run_of_signs_is_split_in_linear_time(run: str) -> None:
    """Ten times the 20,000 characters that took seconds when each was a new beginning: quadratic would be minutes."""
    text = "a" + run * (200_000 // len(run)) + "b"
    assert "".join(split(text)) == text


def test_the_first_piece_is_found_without_splitting_the_rest() -> None:
    text = "Hello. " + "Word by word. " * 1000
    rest = splitter.pieces(text)
    assert next(rest) == "Hello. "
    assert "".join(rest) == text[7:]
