"""Finds the field ``model`` of a multipart form while the form goes by; nothing else of it is kept."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from quintet_common.errors import bad_request

MAX_MODEL = 1024
"""Bytes of a model's name. A longer one is no name."""


def boundary_of(content_type: bytes) -> bytes | None:
    kind, options = parse_options_header(content_type)
    return options.get(b"boundary") if kind == b"multipart/form-data" else None


class ModelScan:
    """``model`` is the first field of that name once it was seen whole; ``span`` is where its bytes stand.

    ``to_end``: go on after it, and refuse a second one.
    """

    def __init__(self, boundary: bytes, to_end: bool = False) -> None:
        self._to_end = to_end
        self.model: str | None = None
        self.span: tuple[int, int] | None = None
        self._consumed = 0
        self._name = b""
        self._value = b""
        self._disposition = b""
        self._found: bytearray | None = None
        self._start = 0
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_begin": self._header_begins,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._part_ends,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from None

    def feed(self, data: bytes) -> None:
        """Raises ApiError 400 for what is no form."""
        if self.model is None or self._to_end:
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise _malformed(error) from None
        self._consumed += len(data)

    def _part_begins(self) -> None:
        self._disposition = b""
        self._found = None

    def _header_begins(self) -> None:
        self._name = self._value = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != b"model" or b"filename" in options:
            return
        if self.model is None:
            self._found = bytearray()
        elif self._to_end:
            raise bad_request("The field model is there twice.", "model", "invalid_value")

    def _data(self, data: bytes, start: int, end: int) -> None:
        found = self._found
        if found is None:
            return
        if not found:
            self._start = self._consumed + start
        found += data[start:end]
        if len(found) > MAX_MODEL:
            raise bad_request("Invalid value for model: too long.", "model", "invalid_value")

    def _part_ends(self) -> None:
        if self._found:
            self.model = self._found.decode("utf-8", "replace")
            self.span = (self._start, self._start + len(self._found))
        self._found = None


def _malformed(error: Exception) -> Exception:
    return bad_request(f"The body is not a valid form: {error}.")
