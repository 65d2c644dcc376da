"""Telling what an answer cost to who asks for it with ``x-quintet-usage``: the router, which counts it per key.

What is known before the answer is in a header of that name. Of streams, and of answers that their client left, nothing
can be told on the way, for every byte of a stream is the client's: the header says ``later``, if it can, and
``GET /quintet/usage/REQUEST_ID`` has it afterwards, once.
"""

from __future__ import annotations

from collections import OrderedDict

from starlette.types import Message

from quintet_common.observation import Observation

HEADER = b"x-quintet-usage"
PATH = "/quintet/usage/"
_KEPT = 1024


class Telling:
    """One answer, whose messages pass through ``add``. ``told`` once everything is told."""

    def __init__(self, seen: Observation) -> None:
        self._seen = seen
        self.told = False

    def add(self, message: Message) -> Message:
        if message["type"] != "http.response.start" or message["status"] >= 400:
            return message
        self.told = any(name == b"content-length" for name, _ in message["headers"])
        value = _written(self._seen.usage) if self.told else b"later"
        return {**message, "headers": [*message["headers"], (HEADER, value)]} if value else message


class Untold:
    """What answers cost whose end told nobody, by request id; the last of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, dict[str, float]] = OrderedDict()

    def keep(self, request_id: str, usage: dict[str, float]) -> None:
        if usage:
            self._kept[request_id] = usage
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def take(self, request_id: str) -> dict[str, float]:
        """Empty when there is nothing, or nothing yet."""
        return self._kept.pop(request_id, {})


def _written(usage: dict[str, float]) -> bytes:
    """``prompt_tokens=12 audio_seconds=1.5``"""
    return " ".join(f"{unit}={round(amount, 3):.15g}" for unit, amount in usage.items()).encode()
