"""What an answer cost, in the units of its kind: read off its headers and its last bytes while it goes by."""

from __future__ import annotations

import re
from collections.abc import Iterable

WINDOW = 2048
"""Bytes of an answer's end that are looked at. Usage stands last in OpenAI's answers and in their streams."""

ASK = b"x-quintet-usage: ask\r\n"
"""The request header that makes our own services tell what an answer cost: in a header of this name, if they
know before it."""

_HEADER = b"x-quintet-usage"
_PAIR = re.compile(rb"([a-z_]+)=(\d+(?:\.\d+)?)")
# Text that a model writes cannot forge this: in a JSON string every quotation mark has a backslash before it.
_USAGE = b'"usage"'
_OBJECT = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_FIELD = re.compile(rb'"([a-z_]+)"\s*:\s*(\d+(?:\.\d+)?)')
_UNITS = {
    b"prompt_tokens": "prompt_tokens",
    b"completion_tokens": "completion_tokens",
    b"input_tokens": "prompt_tokens",
    b"output_tokens": "completion_tokens",
    b"characters": "characters",
    b"audio_seconds": "audio_seconds",
    b"images": "images",
    b"vectors": "vectors",
    b"scores": "scores",
}


def read_usage(headers: Iterable[tuple[bytes, bytes]], tail: bytes) -> dict[str, float]:
    """Amounts by unit: ``headers`` of the answer, ``tail`` its last bytes. Empty when it does not say."""
    found: dict[str, float] = {}
    at = tail.rfind(_USAGE)
    while at >= 0:
        last = _OBJECT.match(tail, at)
        if last is not None:
            _add(found, _FIELD.findall(last[1]))
            break
        at = tail.rfind(_USAGE, 0, at)
    for name, value in headers:
        if name == _HEADER:
            _add(found, _PAIR.findall(value))
    if "characters" in found or "images" in found:  # their tokens are only a translation of these
        found.pop("prompt_tokens", None)
        found.pop("completion_tokens", None)
    return found


def _add(found: dict[str, float], pairs: Iterable[tuple[bytes, bytes]]) -> None:
    for name, value in pairs:
        unit = _UNITS.get(name)
        if unit is not None:
            found[unit] = float(value)
