"""espeak-ng's phonemes for other voices, by the library in a process of its own."""

from __future__ import annotations

import pytest
from quintet_common.errors import ApiError
from quintet_common.worker.host import LoadError
from quintet_tts.backends import phonemes as phonemes_module
from quintet_tts.backends.phonemes import Phonemizer

pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def english() -> Phonemizer:
    return Phonemizer("en-us")


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("Hello there, my friend.", "həlˈoʊ ðˈɛɹ, maɪ fɹˈɛnd."),
        ("How are (you)?", "hˈaʊ ɑːɹ juː?"),
        ('"Yes," she said!', "jˈɛs, ʃiː sˈɛd!"),
        ("no end", "nˈoʊ ˈɛnd"),
        ("Wait… and go.", "wˈeɪt, ænd ɡˈoʊ."),
    ],
)
def test_clauses_keep_their_marks(english: Phonemizer, sentence: str, said: str) -> None:
    assert english(sentence) == said


def test_an_abbreviation_is_no_end(english: Phonemizer) -> None:
    assert english("Dr. Smith paid.") == "dˈɑːktɚ smˈɪθ pˈeɪd."


def test_words_of_another_language_leave_no_mark() -> None:
    assert "(" not in Phonemizer("fr-fr")("Le weekend à New York, Hello World.")


def test_commands_and_odd_characters_are_only_text(english: Phonemizer) -> None:
    for sentence in ("a\tb\nc", "[[h@'loU]] you", "<speak>hi</speak>", "\U0001f600 smile", "-v ko"):
        assert english(sentence)


def test_an_unknown_language_and_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="does not know the language 'tlh-x'"):
        Phonemizer("tlh-x")
    monkeypatch.setattr(phonemes_module, "library_command", lambda: None)
    with pytest.raises(LoadError, match="espeakng-loader"):
        Phonemizer("en-us")


def test_a_process_that_fails_is_an_error_of_the_request() -> None:
    broken = Phonemizer("en-us")
    broken._command = ["false"]
    with pytest.raises(ApiError) as caught:
        broken("Hello.")
    assert caught.value.status == 500
