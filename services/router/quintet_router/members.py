"""Changes one member of a JSON object and leaves every other byte as it is."""

from __future__ import annotations

import json
import re

import msgspec

_KEY = re.compile(rb'[ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*')
_NEXT = re.compile(rb"[ \t\r\n]*([,}])")

MOST = 256
"""With more members than any request has, the object is written anew: going through them would hold up the loop."""

_MOST_SEARCHED = 64 << 10
_value = json.JSONDecoder().raw_decode

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def replace_member(data: bytes, name: str, value: bytes) -> bytes:
    """``data``, a JSON object, with ``value`` for the member ``name``; only one copy of it is made.

    Where a name stands twice and so the object cannot be gone through, it is written anew without what does not count.
    Raises msgspec.DecodeError for what is no JSON object.
    """
    members = _members(data)
    span = _span(data, members, name) if len(members) <= MOST else None
    if span is not None:
        view = memoryview(data)
        changed = b"".join((view[: span[0]], value, view[span[1] :]))
        # Of members that stand twice the lengths of the first ones are unknown, and what was found may be anything.
        if _members(changed).get(name) == msgspec.Raw(value):
            return changed
    members[name] = msgspec.Raw(value)
    return msgspec.json.encode(members)


def _span(data: bytes, members: dict[str, msgspec.Raw], name: str) -> tuple[int, int] | None:
    """Where ``name``'s value stands; None if it stands there twice. A parser has told how long each value is, so none
    is read again."""
    at = data.index(b"{") + 1
    found = None
    while (key := _KEY.match(data, at)) is not None:
        named = msgspec.json.decode(key[1]) if b"\\" in key[1] else key[1][1:-1].decode()
        start = key.end()
        end = start + len(memoryview(members.get(named, b"")))
        if named == name:
            if found is not None:
                return None
            found = start, end
        delimiter = _NEXT.match(data, end)
        if delimiter is None:
            return None
        if delimiter[1] == b"}":
            return found
        at = delimiter.end()
    return None


def faulty_member(data: bytes) -> str | None:
    """The member of a JSON object that cannot be read, for a text that names it; None where that is not clear.

    Python's own decoder, which takes NaN and halves of characters, tells where each value ends.
    """
    if len(data) > _MOST_SEARCHED:
        return None
    at = data.find(b"{") + 1
    try:
        text = data.decode()
        while (key := _KEY.match(data, at)) is not None:
            name = json.loads(key[1])
            start = len(data[: key.end()].decode())
            end = len(text[: _value(text, start)[1]].encode())
            msgspec.json.decode(data[key.end() : end])
            delimiter = _NEXT.match(data, end)
            if delimiter is None:
                return None
            at = delimiter.end()
    except UnicodeDecodeError:
        return None
    except (ValueError, msgspec.DecodeError, RecursionError):
        return str(name)
    return None
