"""Cuts a text into pieces to be spoken one after another: sentences, the first one short, none too long.

Nothing is lost: the pieces, joined, are the text. Sizes are weights, roughly the length of the sound: a Latin letter is
1, a Han, kana or Hangul character 3, a digit 4 (it is read as a word), a sign such as % or $ 8.
"""

from __future__ import annotations

import re
import unicodedata

from quintet_tts.speech.scripts import HAN, HANGUL, KANA, speakable

MAX_WEIGHT = 180
"""Of one piece: about 12 seconds. Bounds the memory of a synthesis and how long it cannot be cancelled."""

FIRST_WEIGHT = 60
"""A first sentence longer than this is cut at a clause, so that the first sound is early."""

MIN_FIRST_WEIGHT = 12

_CLOSERS = r"\"'”’»）)」』】》〉\]"
_SENTENCE_END = re.compile(
    rf"[。！？｡][。！？｡…]*[{_CLOSERS}]*\s*"
    rf"|；[{_CLOSERS}]*\s*"
    rf"|(?:[.!?]+|…+)[{_CLOSERS}]*(?:\s+|$)"
    r"|\s*\n\s*"
)
_CLAUSE_END = re.compile(rf"(?:[，、：；—][{_CLOSERS}]*|[,;:–][{_CLOSERS}]*(?=\s))\s*")
_TITLE = re.compile(
    r"(?i:(?<![\w.])(?:mrs?|ms|dr|prof|st|gen|col|sgt|capt|lt|rev|hon|vs|e\.g|i\.e|cf|approx|u\.s|u\.k))\Z"
)
_NUMBERED = re.compile(r"(?i:(?<![\w.])(?:no|nos|vol|fig|pp?|ch|sec))\Z")
_INITIAL = re.compile(r"(?<![\w.])[A-HJ-Z]\Z")
_WIDE = re.compile(f"[{HAN}{KANA}{HANGUL}]")


def split(text: str) -> list[str]:
    """The pieces of ``text``, each but the last ending where a speaker may pause."""
    pieces: list[str] = []
    for sentence in sentences(text):
        if not pieces and (cut := _first_cut(sentence)):
            pieces.append(sentence[:cut])
            sentence = sentence[cut:]
        pieces += _limited(sentence)
    return _attach_unspeakable(pieces)


def sentences(text: str) -> list[str]:
    """The sentences of ``text`` with the space after them, each with something to speak in it."""
    return _attach_unspeakable(_sentences(text))


def weight(text: str) -> int:
    return sum(map(_weight, text))


def _weight(char: str) -> int:
    if char.isdigit():
        return 4
    if _WIDE.match(char):
        return 3
    return 8 if char in "%&@#*+=/\\<>^~|" or unicodedata.category(char)[0] == "S" else 1


def _sentences(text: str) -> list[str]:
    found, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if _ends_sentence(text, match):
            found.append(text[start : match.end()])
            start = match.end()
    return [*found, text[start:]] if start < len(text) else found


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
    if weight(sentence) <= FIRST_WEIGHT:
        return None
    for match in _CLAUSE_END.finditer(sentence):
        size = weight(sentence[: match.end()])
        if size > FIRST_WEIGHT:
            return None
        if size >= MIN_FIRST_WEIGHT:
            return match.end()
    return None


def _limited(sentence: str) -> list[str]:
    pieces = []
    while (cut := _cut(sentence)) < len(sentence):
        pieces.append(sentence[:cut])
        sentence = sentence[cut:]
    return [*pieces, sentence] if sentence else pieces


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
    while limit > 1 and unicodedata.combining(sentence[limit]):
        limit -= 1
    return limit


def _attach_unspeakable(pieces: list[str]) -> list[str]:
    """Pieces of mere punctuation are joined to the one before, at the start to the one after."""
    joined: list[str] = []
    for piece in pieces:
        if joined and not (speakable(piece) and speakable(joined[-1])):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
