"""When to leave an upstream alone for a while."""

from __future__ import annotations

from enum import StrEnum

FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0


class Failure(StrEnum):
    CONNECT = "connect"
    """Nothing answers there: opens the circuit at once."""
    BROKEN = "broken"
    """The connection broke, or what came was not HTTP."""
    TIMEOUT = "timeout"
    STATUS = "status"
    """It answered 500, 502 or 504. A refusal (4xx) or an honest "not now" (503) is no failure."""


BAD_STATUS = frozenset((500, 502, 504))


class Breaker:
    """Closed: requests pass. Open: none until ``until``. Then half-open: one request passes and decides."""

    __slots__ = ("_failures", "_limit", "_pause", "_probing", "cause", "closed", "until")

    def __init__(self, failures: int) -> None:
        self._limit = failures
        self.succeeded()

    def succeeded(self) -> None:
        self.closed = True
        self.until = 0.0
        self.cause: Failure | None = None
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._probing = False

    def failed(self, why: Failure, now: float) -> None:
        self._failures += 1
        self._probing = False
        self.cause = why
        if why is Failure.CONNECT:  # the next poll tells when it is back, so the pause need not grow
            self.closed = False
            self.until = now + FIRST_PAUSE
        elif self._failures >= self._limit:
            self.closed = False
            self.until = now + self._pause
            self._pause = min(2 * self._pause, LAST_PAUSE)

    def allows(self, now: float) -> bool:
        return self.closed or (now >= self.until and not self._probing)

    def taken(self) -> None:
        """A request goes through."""
        self._probing = not self.closed

    def undecided(self) -> None:
        """A request ended without telling anything about the upstream: its client left, or the upstream said 503."""
        self._probing = False

    @property
    def reachable(self) -> bool:
        """Whether something answers there, if only with errors: better than nothing when no other replica is left."""
        return self.closed or self.cause is Failure.STATUS

    @property
    def state(self) -> str:
        return "closed" if self.closed else "half_open" if self._probing else "open"
