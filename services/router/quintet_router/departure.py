"""How the router leaves: first it says so, then it listens no more, and refuses what still comes."""

from __future__ import annotations

from quintet_common.errors import ApiError


class Departure:
    def __init__(self) -> None:
        self.begun = False
        """SIGTERM came: whoever asks whether the router is ready gets 503, and answers close their connections."""
        self.closed = False
        """Nobody new is let in."""

    def begin(self) -> None:
        self.begun = True

    def close(self) -> None:
        self.begun = self.closed = True


def stopping() -> ApiError:
    return ApiError(503, "The router is stopping. Try again.", code="stopping", retry_after=1)
