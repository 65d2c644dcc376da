"""What an answer cost, in the units of its kind: read off its headers and its last bytes while it goes by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from quintet_router.headers import Header

WINDOW = 2048
"""Bytes of an answer's end that are looked at. Usage stands last in OpenAI's answers and in their streams."""

ASK = b"x-quintet-usage: ask\r\n"
"""The request header that makes our own services tell what an answer cost: in a header of this name, if they
know before it."""

_HEADER = b"x-quintet-usage"
_PAIR = re.compile(r"([a-z_]+)=(\d+(?:\.\d+)?)")
_MOST = 1e15
"""A larger number is a mistake."""
# Text that a model writes cannot forge this: in a JSON string every quotation mark has a backslash before it.
_USAGE = b'"usage"'
_OBJECT = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_UNITS = {
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "characters": "characters",
    "audio_seconds": "audio_seconds",
    "images": "images",
    "vectors": "vectors",
    "scores": "scores",
}


def read_usage(headers: Iterable[Header], tail: bytes) -> dict[str, float]:
    """Amounts by unit: ``headers`` of the answer, ``tail`` its last bytes. Empty when it does not say."""
    found: dict[str, float] = {}
    at = tail.rfind(_USAGE)
    while at >= 0:
        last = _OBJECT.match(tail, at)
        if last is not None:
            found = _counts(last[1])
            break
        at = tail.rfind(_USAGE, 0, at)
    for name, value in headers:
        if name == _HEADER:
            found |= {
                _UNITS[unit]: float(amount) for unit, amount in _PAIR.findall(value.decode("latin-1")) if unit in _UNITS
            }
    if "characters" in found or "images" in found:  # their tokens are only a translation of these
        found.pop("prompt_tokens", None)
        found.pop("completion_tokens", None)
    return found


def _counts(usage: bytes) -> dict[str, float]:
    """The amounts in a JSON object."""
    try:
        members: dict[str, Any] = msgspec.json.decode(usage)
    except msgspec.DecodeError:
        return {}
    found = {}
    for name, value in members.items():
        unit = _UNITS.get(name)
        if unit is not None and type(value) in (int, float) and 0 <= value < _MOST:
            found[unit] = float(value)
    return found
