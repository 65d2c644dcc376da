"""Chinese prompts for a text encoder that reads English only: the words it has pictures for, by a small dictionary."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

_HAN = re.compile(r"[㐀-鿿]+")
_FILE = Path(__file__).with_name("chinese.json")


@functools.cache
def dictionary() -> dict[str, str]:
    """Chinese word -> English, made by ``train/chinese.py`` from CLDR's emoji names and a short list of its own."""
    words: dict[str, str] = json.loads(_FILE.read_text(encoding="utf-8"))
    return words


def to_english(prompt: str) -> str:
    """``prompt`` with its known Chinese words in English and the unknown ones left out; others as they are.

    A prompt with no known word at all stays as it is: an honest miss rather than an empty prompt.
    """
    if not _HAN.search(prompt):
        return prompt
    english = _HAN.sub(lambda run: f" {_words(run[0])} ", prompt)
    english = " ".join(re.sub(r"[，。！？、；：“”（）《》]", " ", english).split())
    return english if re.search(r"[A-Za-z]", english) else prompt


def _words(run: str) -> str:
    """The longest known words of a run of Chinese characters, from left to right."""
    known, longest = dictionary(), max(map(len, dictionary()))
    found: list[str] = []
    start = 0
    while start < len(run):
        for length in range(min(longest, len(run) - start), 0, -1):
            if english := known.get(run[start : start + length]):
                found.append(english)
                start += length
                break
        else:
            start += 1
    return " ".join(dict.fromkeys(found))
