"""What of a message's headers goes on to the other side, and what belongs to one connection only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import getrandbits

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade "
    b"proxy-authenticate proxy-authorization".split()
)
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    # An upstream that compresses would buffer its stream.
    b"accept-encoding",
    # The client's key is for the router; an upstream gets its own.
    b"authorization",
    b"x-api-key",
    # This and what it brings back is between us and our services.
    b"x-quintet-usage",
    b"x-request-id",
}
NOT_RETURNED = _HOP_BY_HOP | {b"server", b"date", b"x-request-id"}
_PERSISTENCE = frozenset((b"keep-alive", b"close", b""))
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

Header = tuple[bytes, bytes]


def named_by_connection(value: bytes | None) -> frozenset[bytes]:
    """The headers that a ``Connection`` header makes hop-by-hop as well."""
    if value is None:
        return frozenset()
    return frozenset(token.strip().lower() for token in value.split(b",")) - _PERSISTENCE


def forwarded(headers: Iterable[Header], fields: dict[bytes, bytes]) -> bytes:
    """A request's headers as lines for the upstream; repeated ones stay repeated. ``fields`` is their dict."""
    connection = fields.get(b"connection")
    if connection is None or connection == b"keep-alive":
        drop = _NOT_FORWARDED
    else:
        named = b",".join(value for name, value in headers if name == b"connection")
        drop = _NOT_FORWARDED | named_by_connection(named)
    lines = b""
    for name, value in headers:
        if name not in drop:
            lines += name + b": " + value + b"\r\n"
    return lines


def without(name: bytes, lines: bytes) -> bytes:
    """``lines``, as ``forwarded`` makes them, less those of one header."""
    return b"".join(line for line in lines.splitlines(True) if not line.startswith(name + b":"))


def request_id(fields: dict[bytes, bytes]) -> bytes:
    """The client's own id if it sent a decent one, else a new one."""
    sent = fields.get(b"x-request-id")
    if sent is not None and _REQUEST_ID.fullmatch(sent):
        return sent
    return b"req_%024x" % getrandbits(96)
