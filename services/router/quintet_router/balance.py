"""Which replica gets a request: one that knows the conversation, or the less busy of two picked at random."""

from __future__ import annotations

from collections.abc import Sequence
from random import random
from zlib import crc32

from quintet_router.affinity import Conversation, Holders, conversation_in, session_in
from quintet_router.body import Body
from quintet_router.catalog import Target
from quintet_router.settings import Settings
from quintet_router.upstream.upstream import Upstream

_MASK = (1 << 64) - 1

Hint = Conversation | int
"""What a request is known by: its conversation, or its session's number."""


class Balancer:
    """Power of two choices; and, where a model has replicas, sessions and conversations go where they went before.

    A replica that has more than ``load_factor`` times the mean of outstanding requests, and one more, is passed over.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._load_factor = settings.load_factor
        self._holders = Holders(settings.prefix_chunks)

    def hint(self, targets: Sequence[Target], session: bytes | None, body: Body) -> Hint | None:
        """What to know a request by; None when any replica is as good. ``session`` is the value of the session
        header."""
        policy = targets[0].upstream.spec.balance or self._settings.balance
        if policy == "least":
            return None
        if session and policy != "prefix":
            return crc32(session)
        if policy == "session":
            name = session_in(body.data)
            return crc32(name.encode("utf-8", "surrogatepass")) if name else None
        return conversation_in(body.talk)

    def choose(
        self, targets: Sequence[Target], tried: Sequence[Upstream], now: float, hint: Hint | None = None
    ) -> Target | None:
        """A target whose upstream was not tried yet and takes requests; None when there is none."""
        if hint is None:
            return choose(targets, tried, now)
        usable = _usable(targets, tried, now)
        if len(usable) < 2:
            chosen = usable[0] if usable else None
        else:
            total, most = 1, 0
            for target in usable:
                busy = target.upstream.outstanding
                total += busy
                if busy > most:
                    most = busy
            limit = self._load_factor * total / len(usable) + 1
            free = usable if most < limit else [each for each in usable if each.upstream.outstanding < limit]
            if isinstance(hint, int):
                return _appointed(free, hint)
            chosen = self._holder(free, hint) or _appointed(free, hint.key)
        if chosen is not None and not isinstance(hint, int):
            self._holders.learn(hint.chunks, 1 << chosen.upstream.slot)
        return chosen

    def _holder(self, free: Sequence[Target], conversation: Conversation) -> Target | None:
        """The replica that holds most of a conversation that has begun before.

        What all conversations of an application share counts for nothing here: the first replica that had it would
        get every new one, while caches of others stay empty.
        """
        for depth, bits in self._holders.find(conversation.chunks):
            if depth < conversation.opening:
                break
            best: Target | None = None
            for target in free:
                if bits >> target.upstream.slot & 1 and (
                    best is None or target.upstream.outstanding < best.upstream.outstanding
                ):
                    best = target
            if best is not None:
                return best
        return None


def choose(targets: Sequence[Target], tried: Sequence[Upstream], now: float) -> Target | None:
    """The less busy of two random targets whose upstreams were not tried yet and take requests; None without any."""
    if len(targets) == 1 and not tried and targets[0].upstream.breaker.closed and not targets[0].upstream.retired:
        return targets[0]
    usable = _usable(targets, tried, now)
    if len(usable) < 2:
        return usable[0] if usable else None
    first = int(random() * len(usable))
    second = (first + 1 + int(random() * (len(usable) - 1))) % len(usable)
    a, b = usable[first], usable[second]
    return b if b.upstream.outstanding < a.upstream.outstanding else a


def retry_seconds(targets: Sequence[Target], now: float) -> float:
    """When the first of these upstreams is worth another try."""
    return min((target.upstream.breaker.until - now for target in targets), default=1.0)


def _usable(targets: Sequence[Target], tried: Sequence[Upstream], now: float) -> Sequence[Target]:
    """The best there are: those that are well; else those that do not answer polls or have just said that they cannot
    now; else those that answer errors. A request that has failed once goes where the last one did not fail."""
    if not tried:
        for each in targets:
            upstream = each.upstream
            if not upstream.breaker.closed or upstream.silent or upstream.retired or upstream.busy_until > now:
                break
        else:  # nearly always
            return targets
    untried = [each for each in targets if each.upstream not in tried and not each.upstream.retired]
    usable = [each for each in untried if each.upstream.breaker.allows(now)]
    well = [each for each in usable if not each.upstream.silent and each.upstream.busy_until <= now]
    if tried and (spotless := [each for each in well if each.upstream.breaker.spotless]):
        return spotless
    return well or usable or [each for each in untried if each.upstream.breaker.reachable]


def _appointed(targets: Sequence[Target], key: int) -> Target:
    """The same for the same key, in every router; when targets come or go, few keys move (rendezvous hashing)."""
    return max(targets, key=lambda target: _mixed(key ^ target.upstream.seed))


def _mixed(number: int) -> int:
    number = number * 0xBF58476D1CE4E5B9 & _MASK
    return (number ^ number >> 29) * 0x94D049BB133111EB & _MASK
