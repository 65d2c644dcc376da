"""Which requests are sent again, and how many: without a limit, retries make an outage of an overload."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from quintet_router.catalog import Target
from quintet_router.exchange import Exchange, Outcome
from quintet_router.settings import Settings
from quintet_router.upstream.upstream import Upstream

_STEPS = 10
_MOST_RESENDS = 2


class RetryBudget:
    """Of the requests in the last ``window`` seconds, the ``share`` that may be sent again, and at least ``minimum``.

    What was never sent, because nothing listened there, costs an upstream nothing and is not counted here.
    """

    __slots__ = ("_minimum", "_requests", "_retries", "_share", "_step", "_turn", "requests")

    def __init__(self, share: float, minimum: int, window: float) -> None:
        self._share = share
        self._minimum = minimum
        self._step = window / _STEPS
        self._turn = 0.0
        self._requests = [0] * _STEPS
        self._retries = [0] * _STEPS
        self.requests = 0
        """Those since the last step; the hot path adds to it."""

    def allows(self, now: float) -> bool:
        """Whether one more request may be sent again."""
        self._turn_to(now)
        requests = sum(self._requests) + self.requests
        return sum(self._retries) < max(self._minimum, self._share * requests)

    def spend(self) -> None:
        self._retries[0] += 1

    def _turn_to(self, now: float) -> None:
        while now - self._turn >= self._step:
            if now - self._turn >= self._step * (_STEPS + 1):  # nothing of what was counted is in the window
                self._requests, self._retries = [0] * _STEPS, [0] * _STEPS
                self._turn = now - self._step
            self._requests = [self.requests, *self._requests[:-1]]
            self._retries = [0, *self._retries[:-1]]
            self.requests = 0
            self._turn += self._step


class Attempts:
    """One request's way through the upstreams.

    Where nothing listens, and where a replica says "not now", the next one is asked. A request that was sent and of
    whose answer nothing came is sent again to another one, at most twice, for it may be what kills its upstreams. Where
    there is no other it goes once to the same if its connection had been idle and was most likely closed already.
    """

    __slots__ = ("at", "budget", "resends", "tried")

    def __init__(self, budget: RetryBudget) -> None:
        self.budget = budget
        self.tried: list[Upstream] = []
        self.at: Upstream | None = None
        """Where it is now."""
        self.resends = 0
        budget.requests += 1

    def resend(self, targets: Sequence[Target], exchange: Exchange, outcome: Outcome, reused: bool) -> bool:
        """Whether to send a request again whose attempt ended so; the next attempt is then taken account of.

        ``reused``: whether the connection had been idle before.
        """
        upstream, now = self.at, monotonic()
        assert upstream is not None
        if exchange.status:
            return False
        stale = outcome is Outcome.BROKEN and reused
        hangs = outcome is Outcome.FROZEN or (outcome is Outcome.TIMEOUT and upstream.silent > 0)
        if not (hangs or outcome is Outcome.BROKEN):
            return False
        if self.may_move(targets, now):
            self.tried.append(upstream)
        elif not stale or self.resends or not self.budget.allows(now):
            return False
        self.resends += 1
        self.budget.spend()
        return True

    def may_move(self, targets: Sequence[Target], now: float) -> bool:
        """Whether the request may be sent again, to a replica that is well and has not had it."""
        if self.resends >= _MOST_RESENDS or not self.budget.allows(now):
            return False
        others = (each.upstream for each in targets if each.upstream not in (self.at, *self.tried))
        return any(each.breaker.allows(now) and not each.silent and not each.retired for each in others)


class Budgets:
    """One budget for each model."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._of: dict[str, RetryBudget] = {}

    def of(self, model: str) -> RetryBudget:
        budget = self._of.get(model)
        if budget is None:
            settings = self._settings
            budget = RetryBudget(settings.retry_share, settings.retry_minimum, settings.retry_window)
            self._of[model] = budget
        return budget
