"""The text as it is to be spoken: numbers and signs in words, in pieces that the language model says in one go."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Protocol

from quintet_tts.cosyvoice.numbers import in_words

LONG, GATHERED, SHORT = 80, 60, 20
"""Pieces are joined up to LONG, or as long as there is no more than GATHERED; a last one below SHORT joins too. In
characters of Chinese, in tokens of other languages."""

_HAN = re.compile(r"[\u4e00-\u9fff]")
_CHINESE_ENDS = frozenset("。？！；：、.?!;")
_OTHER_ENDS = frozenset(".?!;:")
_QUOTES = frozenset('"”')
_CHINESE_SIGNS = str.maketrans({"²": "平方", "³": "立方", ".": "。"})
_BRACKETS = str.maketrans("", "", "（）【】`")


class Normalizer(Protocol):
    def normalize(self, text: str) -> str:
        """Dates, amounts, units and so on in words."""


class Frontend:
    """``chinese`` and ``english`` put a text of the language into words, ``length`` counts its tokens."""

    def __init__(self, chinese: Normalizer, english: Normalizer, length: Callable[[str], int]) -> None:
        self._chinese = chinese
        self._english = english
        self._length = length

    def pieces(self, text: str) -> list[str]:
        """What is to be said, piece by piece. A text with marks such as ``<|en|>`` is left as it is."""
        if not text or _marked(text):
            return [text]
        plain = self.normalized(text)
        if _HAN.search(plain):
            found = _pieces(plain, _CHINESE_ENDS, "。", len)
        else:
            found = _pieces(plain, _OTHER_ENDS, ".", self._length)
        return [piece for piece in found if not _only_signs(piece)]

    def normalized(self, text: str) -> str:
        """The text in words, in one piece."""
        if not text or _marked(text):
            return text
        text = text.strip()
        return self._in_chinese(text) if _HAN.search(text) else self._in_english(text)

    def _in_chinese(self, text: str) -> str:
        text = _without_spaces(self._chinese.normalize(text).replace("\n", ""))
        text = text.translate(_CHINESE_SIGNS).replace(" - ", "，").translate(_BRACKETS).replace("——", " ")
        return re.sub(r"[，,、]+$", "。", text)

    def _in_english(self, text: str) -> str:
        return re.sub(r"\d+", lambda digits: in_words(digits[0]), self._english.normalize(text))


def _marked(text: str) -> bool:
    return "<|" in text and "|>" in text


def _without_spaces(text: str) -> str:
    """Only the spaces that have letters of a Latin text on both sides stay."""

    def stays(index: int) -> bool:
        around = text[index - 1 : index] + text[index + 1 : index + 2]
        return len(around) == 2 and around.isascii() and " " not in around

    return "".join(char for index, char in enumerate(text) if char != " " or stays(index))


def _pieces(text: str, ends: frozenset[str], end: str, length: Callable[[str], int]) -> list[str]:
    """Sentences of ``text``, joined to a good length."""
    pieces: list[str] = []
    gathered = ""
    for sentence in _sentences(text if text[-1:] in ends else text + end, ends):
        if length(gathered) > GATHERED and length(gathered + sentence) > LONG:
            pieces.append(gathered)
            gathered = ""
        gathered += sentence
    if pieces and length(gathered) < SHORT:
        pieces[-1] += gathered
    elif gathered:
        pieces.append(gathered)
    return pieces


def _sentences(text: str, ends: frozenset[str]) -> list[str]:
    """Cut after each end mark and the quote that closes behind it; of several marks in a row the first stays."""
    found: list[str] = []
    start = 0
    for index, char in enumerate(text):
        if char not in ends:
            continue
        if index > start:
            found.append(text[start : index + 1])
        start = index + 1
        if text[start : start + 1] in _QUOTES and found:
            found[-1] += text[start]
            start += 1
    return found


def _only_signs(text: str) -> bool:
    return all(unicodedata.category(char)[0] in "PS" for char in text)
