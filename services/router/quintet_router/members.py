"""Changes one member of a JSON object and leaves every other byte as it is."""

from __future__ import annotations

import re

import msgspec

_KEY = re.compile(rb'[ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*')
_NEXT = re.compile(rb"[ \t\r\n]*([,}])")

MOST = 256
"""With more members than any request has, the object is written anew: going through them would hold up the loop."""

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
    """Where the last ``name``'s value stands. A parser has told how long each value is, so none is read again."""
    at = data.index(b"{") + 1
    found = None
    while (key := _KEY.match(data, at)) is not None:
        named = msgspec.json.decode(key[1]) if b"\\" in key[1] else key[1][1:-1].decode()
        start = key.end()
        end = start + len(memoryview(members.get(named, b"")))
        if named == name:
            found = start, end
        delimiter = _NEXT.match(data, end)
        if delimiter is None:
            return None
        if delimiter[1] == b"}":
            return found
        at = delimiter.end()
    return None
