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
_ANYHOW = -1
"""Ticket of a request that goes to an open upstream because there is no better one."""


class Breaker:
    """Closed: requests pass. Open: none until ``until``. Then half-open: one request passes and decides.

    A request takes a ticket and brings it back with what has become of it, so that those which were under way when the
    circuit opened neither open it further nor close it, and the end of another request does not let a second probe in.
    """

    __slots__ = ("_era", "_failures", "_limit", "_pause", "_probe", "cause", "closed", "lost_at", "until")

    def __init__(self, failures: int) -> None:
        self._limit = failures
        self._era = 1
        self.lost_at = 0.0
        """When it was first found that nothing answers there, while the cause is that."""
        self._close()

    def _close(self) -> None:
        self.closed = True
        self.until = 0.0
        self.cause: Failure | None = None
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._probe = 0

    def succeeded(self, ticket: int | None = None) -> None:
        """``ticket`` is None when it was a poll."""
        if (self._failures or not self.closed) and (ticket is None or ticket == _ANYHOW or ticket == self._era):
            self._close()

    def failed(self, why: Failure, now: float, ticket: int | None = None) -> None:
        if why is Failure.CONNECT:  # the next poll tells when it is back, so the pause need not grow
            self._failures += 1
            if self.cause is not Failure.CONNECT:
                self.lost_at = now
            self._open(why, now + FIRST_PAUSE)
            return
        if ticket is not None and ticket != self._era:
            return
        self._failures += 1
        self.cause = why
        if not self.closed or self._failures >= self._limit:
            self._open(why, now + self._pause)
            self._pause = min(2 * self._pause, LAST_PAUSE)

    def _open(self, why: Failure, until: float) -> None:
        self.closed = False
        self.cause = why
        self.until = until
        self._era += 1
        self._probe = 0

    def allows(self, now: float) -> bool:
        return self.closed or (now >= self.until and not self._probe)

    def taken(self, now: float) -> int:
        """A request goes through: its ticket."""
        if self.closed:
            return self._era
        if now < self.until or self._probe:
            return _ANYHOW
        self._era += 1
        self._probe = self._era
        return self._era

    def ended(self, ticket: int) -> None:
        """The request is over; if it told nothing about the upstream, because its client left for instance, the next
        one may probe."""
        if ticket == self._probe:
            self._probe = 0

    @property
    def spotless(self) -> bool:
        """Whether the last thing known of it is good."""
        return self.closed and not self._failures

    @property
    def reachable(self) -> bool:
        """Whether something answers there, if only with errors: better than nothing when no other replica is left."""
        return self.closed or self.cause is Failure.STATUS

    @property
    def state(self) -> str:
        return "closed" if self.closed else "half_open" if self._probe else "open"
