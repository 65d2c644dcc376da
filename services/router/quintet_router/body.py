"""A request's body, and the model that it names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from time import monotonic

import msgspec
from quintet_common.characters import half_in
from quintet_common.errors import ApiError, bad_request

from quintet_router.affinity import Talk
from quintet_router.downstream import Downstream
from quintet_router.members import faulty_member, replace_member
from quintet_router.multipart import ModelScan, boundary_of

_BLANKS = b" \t\r\n"
_PLACE = re.compile(r"`\$\.(\w+)`$")
_MOST_BLANKS = 64 << 10
"""Before a JSON body's first brace; nobody sends so many but to fill memory."""


class ClientGone(Exception):
    """The client left before its request was complete."""


@dataclass(slots=True)
class Body:
    """``data`` is the whole body, or its first part when not ``whole``.

    ``span`` is where a form's model stands in ``data``. ``length`` is the whole body's, None when sent in chunks.
    """

    data: bytes
    model: str | None = None
    whole: bool = True
    length: int | None = 0
    span: tuple[int, int] | None = None
    read_at: float = 0.0
    """When its last byte was here, by ``time.monotonic``."""
    talk: Talk | None = None
    """What it says, where that may matter."""

    def with_model(self, name: str) -> Body:
        """The same body naming another model; no other byte of a form or a JSON value changes."""
        if self.span is not None:
            start, end = self.span
            if self.data[start:end] != (self.model or "").encode():
                raise bad_request("Invalid value for model.", "model", "invalid_value")
            data = self.data[:start] + name.encode() + self.data[end:]
            length = None if self.length is None else self.length + len(data) - len(self.data)
            return Body(data, name, self.whole, length, (start, start + len(name.encode())))
        if self.model is None:
            return self
        data = replace_member(self.data, "model", msgspec.json.encode(name))
        return Body(data, name, True, len(data), None, self.read_at, self.talk)


class _Peek(msgspec.Struct):
    model: str | None = None


_peek = msgspec.json.Decoder(_Peek).decode
_peek_at_talk = msgspec.json.Decoder(Talk).decode


def model_in_json(data: bytes, is_talk: bool = False) -> tuple[str | None, Talk | None]:
    """The ``model`` of a JSON object; like every JSON parser, the last one of several. And what it says, if it
    ``is_talk``. Raises ApiError 400."""
    try:
        if is_talk:
            talk = _peek_at_talk(data)
            return talk.model, talk
        return _peek(data).model, None
    except msgspec.ValidationError as error:
        if str(error).endswith("`$.model`"):
            raise bad_request("Invalid value for model: expected a string.", "model", "invalid_value") from None
        if found := _PLACE.search(str(error)):
            raise bad_request(f"Invalid value for {found[1]}.", found[1], "invalid_value") from None
        raise bad_request("The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if (halves := _halves(data)) is not None:
            raise halves from None
        if (name := faulty_member(data)) is not None:
            raise bad_request(f"The body is not valid JSON: the value of {name!r} is not.", name) from None
        raise bad_request(f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        raise bad_request("The body is not valid JSON: nested too deeply.") from None


def _halves(data: bytes) -> ApiError | None:
    """What the services say of half a character, where that is why ``data`` cannot be read."""
    if b"\\u" not in data:
        return None
    try:
        return half_in(json.loads(data))
    except (ValueError, RecursionError):
        return None


def json_body(data: bytes, is_talk: bool) -> Body:
    """``data`` is all of it. Raises ApiError 400."""
    read_at = monotonic()
    model, talk = model_in_json(data, is_talk)
    return Body(data, model, True, len(data), None, read_at, talk)


class BodyReader:
    """Reads one request's body. ``limit`` in bytes, ``timeout`` in seconds between two pieces."""

    def __init__(self, request: Downstream, limit: int, timeout: float) -> None:
        self._request = request
        self._fields = fields = request.fields
        self._limit = limit
        self._timeout = timeout
        length = fields.get(b"content-length")
        self.length = int(length) if length is not None else None
        if self.length is not None and self.length > limit:
            raise too_large(limit)

    def take_json(self, data: bytes, is_talk: bool) -> Body:
        """``data`` is the whole body. Raises ApiError for one that cannot be passed on."""
        if len(data) > self._limit:
            raise too_large(self._limit)
        if b"content-encoding" in self._fields:
            raise ApiError(415, "Compressed request bodies are not accepted.", code="unsupported_content_encoding")
        return json_body(data, is_talk)

    async def read_json(self) -> bytes:
        """The rest of the body. Raises ClientGone, and ApiError for what will not be JSON or is too large."""
        parts: list[bytes] = []
        size, blank, more = 0, True, True
        while more:
            piece, more = await self._piece()
            parts.append(piece)
            size += len(piece)
            if size > self._limit:
                raise too_large(self._limit)
            if blank and (begin := piece.lstrip(_BLANKS)):
                blank = False
                if begin[:1] != b"{":
                    raise bad_request("The body must be a JSON object.")
            elif blank and size > _MOST_BLANKS:
                raise bad_request("The body is not valid JSON: it begins with nothing but blanks.")
        return b"".join(parts)

    async def read_form(self, content_type: bytes, window: int, to_end: bool = False) -> Body:
        """Read until the model is known. ``window``: give up after so many bytes and return what there is.

        ``to_end``: read all of it, so that nothing in it can say otherwise.
        """
        boundary = boundary_of(content_type)
        if boundary is None:
            raise bad_request("A multipart body needs a boundary in its Content-Type.")
        scan, data, more = ModelScan(boundary, to_end), bytearray(), True
        while more and (to_end or (scan.model is None and len(data) < window)):
            piece, more = await self._piece()
            data += piece
            if len(data) > self._limit:
                raise too_large(self._limit)
            scan.feed(piece)
        return Body(bytes(data), scan.model, not more, self.length if more else len(data), scan.span, monotonic())

    async def _piece(self) -> tuple[bytes, bool]:
        piece = await self._request.read(self._timeout)
        if piece is not None:
            return piece, self._request.more
        if self._request.lost:
            raise ClientGone
        raise ApiError(408, "The request's body did not arrive in time.", code="request_timeout")


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit >> 20} MiB.", code="body_too_large")
