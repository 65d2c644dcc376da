"""Cuts a text into pieces to be spoken one after another: sentences, the first one short, none too long.

Nothing is lost: the pieces, joined, are the text. Sizes are weights, roughly the length of the sound: a Latin letter is
1, a Han, kana or Hangul character 3, a digit 4 (it is read as a word), a sign such as % or $ 8.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from quintet_tts.speech.scripts import HAN, HANGUL, KANA, speakable

MAX_WEIGHT = 180
"""Of one piece: about 12 seconds. Bounds the memory of a synthesis and how long it cannot be cancelled."""

FIRST_WEIGHT = 60
"""A first sentence longer than this is cut at a clause, so that the first sound is early."""

MIN_FIRST_WEIGHT = 12

_CLOSERS = r"\"'”’»）)」』】》〉\]"
_FULL_STOPS = r"。！？｡\u0964\u0965\u061f\u06d4"
"""Of Chinese and Japanese, Hindi, Arabic and Urdu: they mean nothing else, so no space need follow."""

_SENTENCE_END = re.compile(
    rf"[{_FULL_STOPS}][{_FULL_STOPS}…]*[{_CLOSERS}]*\s*"
    rf"|；[{_CLOSERS}]*\s*"
    rf"|(?:(?<![.!?])[.!?]++|(?<!…)…++)[{_CLOSERS}]*+(?:\s+|$)"
    r"|(?<!\s)\s*\n\s*"
)
"""Linear in the text: a run of marks or of space is tried from its beginning only, not from each of its characters."""

_CLAUSE_END = re.compile(rf"(?:[，、：；—\u060c\u061b][{_CLOSERS}]*|[,;:–][{_CLOSERS}]*(?=\s))\s*")
_TITLE = re.compile(
    r"(?i:(?<![\w.])(?:mrs?|ms|dr|prof|st|gen|col|sgt|capt|lt|rev|hon|vs|e\.g|i\.e|cf|approx|u\.s|u\.k))\Z"
)
_NUMBERED = re.compile(r"(?i:(?<![\w.])(?:no|nos|vol|fig|pp?|ch|sec))\Z")
_INITIAL = re.compile(r"(?<![\w.])[A-HJ-Z]\Z")
_WIDE = re.compile(f"[{HAN}{KANA}{HANGUL}]")


def split(text: str) -> list[str]:
    """The pieces of ``text``, each but the last ending where a speaker may pause."""
    return list(pieces(text))


def pieces(text: str) -> Iterator[str]:
    """As ``split``, one after another: what it takes to find one does not grow with the length of the text."""
    return _attach_unspeakable(_pieces(text))


def sentences(text: str) -> Iterator[str]:
    """The sentences of ``text`` with the space after them, each with something to speak in it."""
    return _attach_unspeakable(_sentences(text))


def _pieces(text: str) -> Iterator[str]:
    for number, sentence in enumerate(sentences(text)):
        cut = (_first_cut(sentence) or 0) if number == 0 else 0
        if cut:
            yield sentence[:cut]
        yield from _limited(sentence, cut)


def weight(text: str) -> int:
    return sum(map(_weight, text))


def _weight(char: str) -> int:
    if char.isdigit():
        return 4
    if _WIDE.match(char):
        return 3
    return 8 if char in "%&@#*+=/\\<>^~|" or unicodedata.category(char)[0] == "S" else 1


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if _ends_sentence(text, match):
            yield text[start : match.end()]
            start = match.end()
    if start < len(text):
        yield text[start:]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    """False after abbreviations and initials, and where a lower-case letter shows that the sentence goes on."""
    mark = match[0].strip()
    follows = text[match.end() : match.end() + 1]
    if not mark:  # a line break: an empty line always ends, a single one does unless the text was wrapped there
        return match[0].count("\n") > 1 or not follows.islower()
    if mark[0] not in ".…" or not follows:
        return True
    if "\n" not in match[0] and follows.islower():
        return False
    if mark != ".":
        return True
    before = text[max(0, match.start() - 10) : match.start()]
    if follows.isdigit() and _NUMBERED.search(before):
        return False
    return not (_TITLE.search(before) or _INITIAL.search(before))


def _first_cut(sentence: str) -> int | None:
    """Where a long first sentence may be cut: at its first clause that is neither a mere word nor long itself."""
    sentence = sentence[: FIRST_WEIGHT + 2]  # no character weighs less than 1
    if weight(sentence) <= FIRST_WEIGHT:
        return None
    for match in _CLAUSE_END.finditer(sentence):
        size = weight(sentence[: match.end()])
        if size > FIRST_WEIGHT:
            return None
        if size >= MIN_FIRST_WEIGHT:
            return match.end()
    return None


def _limited(sentence: str, start: int) -> Iterator[str]:
    """``sentence`` from ``start`` on, in pieces that are not too long."""
    while start < len(sentence):
        end = start + _cut(sentence[start : start + MAX_WEIGHT + 1])  # no character weighs less than 1
        yield sentence[start:end]
        start = end


def _cut(sentence: str) -> int:
    """The length of the longest piece at the start: to a clause if there is one, else to a space, else to the limit."""
    size, limit = 0, len(sentence)
    for position, char in enumerate(sentence):
        size += _weight(char)
        if size > MAX_WEIGHT:
            limit = max(1, position)
            break
    else:
        return len(sentence)
    clauses = [match.end() for match in _CLAUSE_END.finditer(sentence, 0, limit) if match.end() >= limit // 3]
    if clauses:
        return clauses[-1]
    space = max(sentence.rfind(blank, limit // 2, limit) for blank in " \t\u3000") + 1
    if space:
        return space
    whole = limit
    while whole > 1 and unicodedata.combining(sentence[whole]):
        whole -= 1
    return whole if whole > 1 else limit  # marks on marks are cut somewhere


def _attach_unspeakable(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of mere punctuation are joined to the one before, at the start to the one after."""
    joined: list[str] = []
    spoken = False
    for piece in pieces:
        speaks = speakable(piece)
        if speaks and spoken:
            yield "".join(joined)
            joined = []
        joined.append(piece)
        spoken = spoken or speaks
    if joined:
        yield "".join(joined)
