"""The messages between a service and a worker, and their framing: a little-endian uint32 length, then msgpack.

service -> worker   Load once, then Submit, Cancel and Hold
worker -> service   Progress while loading, Ready or Failed; per request any number of Events, exactly one Done; Stats

Bodies are msgpack of the service's own types, so that this module knows none of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from quintet_common.errors import ApiError

MAX_FRAME = 1 << 30
_LENGTH = struct.Struct("<I")


class Load(msgspec.Struct, tag=0, array_like=True):
    spec: dict[str, Any]
    """A ModelSpec as plain data."""


class Submit(msgspec.Struct, tag=1, array_like=True):
    id: int
    body: msgspec.Raw


class Cancel(msgspec.Struct, tag=2, array_like=True):
    id: int


class Hold(msgspec.Struct, tag=9, array_like=True):
    """The client of a request does not keep up, or does again: until then it needs no further events."""

    id: int
    held: bool


class Progress(msgspec.Struct, tag=3, array_like=True):
    fraction: float
    """From 0 to 1, over the whole of loading."""
    note: str


class Ready(msgspec.Struct, tag=4, array_like=True):
    info: dict[str, Any]
    """What the API needs to know of the loaded model; shown in ``/v1/models``."""


class Failed(msgspec.Struct, tag=5, array_like=True):
    reason: str
    permanent: bool
    """True when trying again cannot help: a missing file, an unknown architecture."""


class Event(msgspec.Struct, tag=6, array_like=True):
    id: int
    body: msgspec.Raw


class RequestError(msgspec.Struct, array_like=True):
    """An ApiError on its way from the worker to the client."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None
    retry: bool | None = None

    @classmethod
    def of(cls, error: ApiError) -> RequestError:
        return cls(error.status, error.message, error.param, error.code, error.retry_after, error.retry)

    def as_api_error(self) -> ApiError:
        return ApiError(
            self.status,
            self.message,
            param=self.param,
            code=self.code,
            retry_after=self.retry_after,
            retry=self.retry,
        )


class Done(msgspec.Struct, tag=7, array_like=True):
    id: int
    error: RequestError | None = None


class Stats(msgspec.Struct, tag=8, array_like=True):
    values: dict[str, float]
    """By metric name without the ``quintet_`` prefix: gauges, and counters, which end in ``_total`` and are not counted
    by the service too. ``num_requests_running`` and ``num_requests_waiting`` always."""


ToWorker = Load | Submit | Cancel | Hold
FromWorker = Progress | Ready | Failed | Event | Done | Stats

_encoder = msgspec.msgpack.Encoder()


def encode_body(body: Any) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(body))


def frame(message: ToWorker | FromWorker) -> bytes:
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Cuts a byte stream into frames. Feed it what arrived; it yields the payloads that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises ValueError for a frame longer than MAX_FRAME: the stream is not ours."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ValueError(f"frame of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[_LENGTH.size : end])
            del self._buffer[:end]
            yield payload
