"""Which replica gets a request: the less busy of two picked at random (power of two choices)."""

from __future__ import annotations

from collections.abc import Sequence
from random import random

from quintet_router.catalog import Target
from quintet_router.upstream.upstream import Upstream


def choose(targets: Sequence[Target], tried: Sequence[Upstream], now: float) -> Target | None:
    """A target whose upstream was not tried yet and takes requests; None when there is none.

    An upstream that only answers errors is used when no better one is left.
    """
    if len(targets) == 1 and not tried and targets[0].upstream.breaker.closed:
        return targets[0]
    untried = [target for target in targets if target.upstream not in tried]
    usable = [target for target in untried if target.upstream.breaker.allows(now)]
    usable = usable or [target for target in untried if target.upstream.breaker.reachable]
    if len(usable) < 2:
        return usable[0] if usable else None
    first = int(random() * len(usable))
    second = (first + 1 + int(random() * (len(usable) - 1))) % len(usable)
    a, b = usable[first], usable[second]
    return b if b.upstream.outstanding < a.upstream.outstanding else a


def retry_seconds(targets: Sequence[Target], now: float) -> float:
    """When the first of these upstreams is worth another try."""
    return min((target.upstream.breaker.until - now for target in targets), default=1.0)
