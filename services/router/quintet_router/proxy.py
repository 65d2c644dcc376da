"""The hot path: an upstream for a request, and what becomes of every attempt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from functools import partial
from time import monotonic

import msgspec
from quintet_common.errors import CLIENT_CLOSED_REQUEST, LOADING_HEADER, ApiError

from quintet_router.access.gate import Gate
from quintet_router.balance import Balancer, retry_seconds
from quintet_router.body import Body, ClientGone, too_large
from quintet_router.catalog import Target
from quintet_router.departure import stopping
from quintet_router.downstream import Downstream
from quintet_router.driven import in_task
from quintet_router.exchange import Exchange, Outcome
from quintet_router.fleet import Fleet
from quintet_router.headers import Header, request_id
from quintet_router.intake import Intake, Job
from quintet_router.late_usage import LateUsage
from quintet_router.lobby import Lobby
from quintet_router.metrics import Metrics
from quintet_router.paths import NotAllowed, Path
from quintet_router.queue import Queue
from quintet_router.recorder import Recorder, Seen
from quintet_router.replies import send_error, unavailable
from quintet_router.settings import Settings
from quintet_router.spans import Spans
from quintet_router.upstream.breaker import BAD_STATUS, Failure
from quintet_router.upstream.connection import Connection
from quintet_router.upstream.upstream import Upstream

log = logging.getLogger("quintet.router")
_OTHER_REPLICA = frozenset((429, 502, 503))
_NOT_HERE = frozenset((404,))
_LATER = frozenset((503,))
_LOADING = LOADING_HEADER.encode()


class Proxy:
    """Forwards requests to the upstreams of ``fleet``, as far as ``gate`` lets them in. Calling it is one request."""

    def __init__(
        self, fleet: Fleet, metrics: Metrics, gate: Gate, settings: Settings, spans: Spans | None = None
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._settings = settings
        self._gate = gate
        self._limited = settings.max_concurrent is not None
        self._queue = Queue(settings, fleet.catalog)
        self._lobby = Lobby(fleet.catalog, settings.load_wait)
        metrics.waiting = [("turn", self._queue.lengths), ("model", self._lobby.lengths)]
        self._spans = spans
        self._recorder = Recorder(metrics, LateUsage(fleet), spans, settings.access_log)
        self._balancer = Balancer(settings)
        self._intake = Intake(fleet, settings, self._balancer, self._lobby, spans)
        self._active: dict[Exchange, Job | None] = {}

    async def watch(self) -> None:
        """End requests that take too long and close connections that nobody uses, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.watch_seconds)
            self._check(monotonic())

    def _check(self, now: float) -> None:
        for exchange, job in list(self._active.items()):
            exchange.check(now)
            if job is not None:
                self._rescue(job, exchange, now)
        self._fleet.tick(now)

    def _rescue(self, job: Job, exchange: Exchange, now: float) -> None:
        """Move a request on whose upstream answers nothing any more, not even polls."""
        at = job.attempts.at
        waits = at is not None and at.frozen and exchange.waiting and job.body.whole
        if waits and job.attempts.may_move(job.targets, now):
            exchange.move()

    async def __call__(self, path: Path, request: Downstream) -> None:
        own_id = request_id(request.fields)
        exchange = Exchange(request, self._settings, own_id)
        seen = Seen(path.label, request.method, exchange, monotonic())
        if self._spans is not None:
            seen.span = self._spans.start(request.method, path.label, request.fields)
        self._active[exchange] = None
        try:
            if self._gate.locked and not path.open:
                seen.client = self._gate.identify(request.fields)
                asks = self._gate.enter(seen.client)
                seen.inside = True
                if asks:
                    exchange.added, seen.place = await self._gate.admit(seen.client)
            if request.method not in path.methods:
                raise NotAllowed(request.method, path)
            job = await self._intake.prepare(path, seen, request)
            seen.code = await self._forward(job, exchange)
        except ClientGone:
            pass
        except ApiError as error:
            seen.code = self._tell(request, exchange, error)
        except GeneratorExit:  # the router stops, and has waited for this for as long as it may
            seen.code = self._tell(request, exchange, stopping())
            raise
        except Exception:
            log.exception("%s failed", path.label)
            fault = ApiError(500, "The router failed on this request; its log has the details.")
            seen.code = self._tell(request, exchange, fault)
        finally:
            del self._active[exchange]
            exchange.close()
            if seen.inside:
                self._gate.leave(seen.client, seen.place)
            self._recorder.record(seen)
        if exchange.status and seen.code != exchange.status:  # the answer is not complete and must not look so
            request.hang_up(None if seen.code == CLIENT_CLOSED_REQUEST else self._settings.connect_timeout)

    # Attempts.

    async def _forward(self, job: Job, exchange: Exchange) -> int:
        """Try one upstream after the other until the client has an answer; its status, or 499 when the client left.

        Raises ApiError when no upstream answers, or one breaks off.
        """
        self._active[exchange] = job
        attempts = job.attempts
        while True:
            target = await self._target(job, exchange)
            attempts.at = upstream = target.upstream
            ticket = upstream.breaker.taken(monotonic())
            try:
                job.seen.upstream = upstream.label
                job.seen.service = upstream if upstream.ours else None
                # What streams through cannot be sent again, so it must not meet a connection that is just closing.
                idle = upstream.pool.take() if job.body.whole and not attempts.resends else None
                connection = idle or await self._connect(upstream)
                if connection is None:
                    attempts.tried.append(upstream)
                    job.seen.retries += 1
                    continue
                reused = connection.reused
                outcome = await self._send(job, exchange, target, connection)
            finally:
                if self._limited:
                    self._queue.leave(upstream)
                else:
                    upstream.outstanding -= 1
                if exchange.connection is not None:
                    exchange.detach()
                if not upstream.breaker.closed:
                    upstream.breaker.ended(ticket)
            if outcome is Outcome.DONE:
                upstream.observe(exchange.first_byte_at - exchange.sent_at)
                _judge(upstream, exchange.status, ticket)
                return exchange.status
            if outcome is Outcome.OTHER:
                _judge(upstream, exchange.other, ticket)
                if exchange.other in _OTHER_REPLICA:
                    upstream.busy_until = monotonic() + self._settings.busy_seconds
                attempts.tried.append(upstream)
                if _may_wait(job) and _says_loading(exchange.turned_down):
                    job.waited = True
                    self._fleet.ask_now(upstream)
                    await self._wait(job, exchange, self._intake.wait_again(job))
                else:
                    attempts.budget.spend()
            else:
                stale = outcome is Outcome.BROKEN and reused and not (attempts.resends or exchange.status)
                error = None if stale else self._explain(upstream, exchange, outcome, ticket)
                if not (job.body.whole and attempts.resend(job.targets, exchange, outcome, reused)):
                    error = self._explain(upstream, exchange, outcome, ticket) if stale else error
                    if error is None:
                        return CLIENT_CLOSED_REQUEST
                    raise error
            job.seen.retries += 1

    async def _target(self, job: Job, exchange: Exchange) -> Target:
        """Where the next attempt goes. Raises what ``_pick`` and ``_place`` raise."""
        try:
            return await self._place(job, exchange) if self._limited else self._pick(job, job.targets)
        except Nobody:
            if (until := self._back_by(job)) is None:
                raise
        await self._wait(job, exchange, self._intake.wait_for_return(job, until))
        return await self._target(job, exchange)  # a job waits so only once

    async def _wait(self, job: Job, exchange: Exchange, waiting: Awaitable[None]) -> None:
        exchange.renew()
        began = monotonic()
        await waiting
        job.seen.waited += monotonic() - began

    def _back_by(self, job: Job) -> float | None:
        """Until when a request may wait for its upstreams, of which none is there; None where it may not.

        What just died is mostly started again, and this costs it nothing: no request is sent. Not one, though, that was
        sent already, for it may be what upstreams die of.
        """
        settings, name = self._settings, job.model
        if job.returned or job.attempts.resends or not (job.body.whole and name):
            return None
        if self._lobby.lengths.get(name, 0) >= settings.max_waiting:
            return None
        breakers = [each.upstream.breaker for each in job.targets]
        lost = [each.lost_at for each in breakers if each.cause is Failure.CONNECT]
        until = max(lost) + min(settings.restart_wait, settings.load_wait) if lost else 0.0
        return until if until > monotonic() else None

    def _pick(self, job: Job, targets: Sequence[Target]) -> Target:
        """One of ``targets`` for the next attempt, and a place there that has to be given back. Raises Nobody."""
        now = monotonic()
        target = self._balancer.choose(targets, job.attempts.tried, now, job.hint)
        if target is None:
            raise Nobody(job, now)
        target.upstream.outstanding += 1
        return target

    async def _place(self, job: Job, exchange: Exchange) -> Target:
        """The same where upstreams have so many places and no more; waits for one if need be.

        Raises Nobody, and ApiError 429 and 503.
        """
        now, tried = monotonic(), job.attempts.tried
        allowed = [each for each in job.targets if each.upstream not in tried and each.upstream.breaker.allows(now)]
        full = [each for each in allowed if each.upstream.full]
        if full and all(each.upstream.full or each.upstream.retired for each in allowed):
            exchange.renew()
            target = await self._queue.wait(job.model, full, exchange, partial(self._elsewhere, job, full))
            job.seen.waited += monotonic() - now
            if target is not None:
                return target
            await self._wait(job, exchange, self._intake.find_again(job))
            return await self._place(job, exchange)
        return self._pick(job, [each for each in job.targets if not each.upstream.full])

    def _elsewhere(self, job: Job, full: Sequence[Target]) -> bool:
        """Whether a request that waits for its turn at ``full`` had better ask for its model's upstreams again: all of
        these have left, or another one has a place. Raises ApiError when there is no such model any more."""
        if all(each.upstream.retired for each in full):
            return True
        now, tried = monotonic(), job.attempts.tried
        others = (each.upstream for each in self._intake.targets_of(job) if each.upstream not in tried)
        return any(each.breaker.allows(now) and not each.full for each in others)

    async def _connect(self, upstream: Upstream) -> Connection | None:
        """A new connection; None when nothing listens there."""
        try:
            return await in_task(upstream.pool.connect())
        except (OSError, TimeoutError) as error:
            upstream.breaker.failed(Failure.CONNECT, monotonic())
            self._fleet.ask_now(upstream)
            log.debug("%s cannot be reached: %r", upstream.label, error)
            return None

    def _send(self, job: Job, exchange: Exchange, target: Target, connection: Connection) -> asyncio.Future[Outcome]:
        upstream, request, path = target.upstream, job.request, job.path
        body = job.body if target.rename is None else job.body.with_model(target.rename)
        line = upstream.request_head(path, request.raw_path, request.query, job.host)
        head = line + job.headers + _framing(body)
        data = body.data
        if body.length is None and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        others = body.whole and len(job.attempts.tried) + 1 < len(job.targets)
        asks_all = path.ask_all and not job.model
        other_on = (_NOT_HERE if asks_all else _OTHER_REPLICA) if others else ()
        if not job.seen.retries:
            job.seen.overhead = monotonic() - job.body.read_at - job.seen.waited
        if not body.whole:
            left = self._settings.max_body if body.length is None else body.length
            exchange.upload(body.length is None, left - len(body.data))
        may_move = _always if asks_all else job.attempts.budget.allows
        if not others and self._settings.load_wait and _may_wait(job):
            other_on, may_move = _LATER, partial(_loads, connection)
        return exchange.attempt(
            upstream.pool, connection, head, data, self._settings.first_byte(job.kind), other_on, may_move
        )

    # Ends.

    def _tell(self, request: Downstream, exchange: Exchange, error: ApiError) -> int:
        """End a request without a complete answer, and say why as far as that can be said: the status that it counts
        as."""
        if request.complete:
            return exchange.status
        if not exchange.status:
            send_error(request, error, [(b"x-request-id", exchange.request_id), *exchange.added])
        elif exchange.between_events:
            exchange.last_words(b"data: " + msgspec.json.encode(error.body) + b"\n\n")
        return error.status

    def _explain(self, upstream: Upstream, exchange: Exchange, outcome: Outcome, ticket: int) -> ApiError | None:
        """What to tell the client, if it is still there; and what the failure says about the upstream."""
        if outcome in (Outcome.TIMEOUT, Outcome.FROZEN):
            if outcome is Outcome.TIMEOUT:  # of what is frozen the polls tell, also when it is well again
                upstream.breaker.failed(Failure.TIMEOUT, monotonic(), ticket)
            return ApiError(504, "The model did not answer in time.", code="upstream_timeout")
        if outcome is Outcome.BROKEN:
            log.warning("%s broke off: %r", upstream.label, exchange.error)
            upstream.breaker.failed(Failure.BROKEN, monotonic(), ticket)
            self._fleet.ask_now(upstream)
            return ApiError(502, "The connection to the model broke.", code="upstream_failed")
        if outcome is Outcome.TOO_LARGE:
            return too_large(self._settings.max_body)
        if outcome is Outcome.STALLED and not exchange.status:
            return ApiError(408, "The request's body did not arrive in time.", code="request_timeout")
        return None


def _always(_: float) -> bool:
    return True


def _may_wait(job: Job) -> bool:
    """Whether a request may still wait for a model that loads again: its service has been restarted, say, which no
    poll has told yet."""
    return not job.waited and job.body.whole and bool(job.model)


def _loads(connection: Connection, _: float) -> bool:
    return _says_loading(connection.headers)


def _says_loading(headers: Sequence[Header]) -> bool:
    return any(name == _LOADING for name, _ in headers)


def _judge(upstream: Upstream, status: int, ticket: int) -> None:
    """What an answer says about its upstream. A refusal is no fault of it, and 503 says nothing new."""
    if status in BAD_STATUS:
        upstream.breaker.failed(Failure.STATUS, monotonic(), ticket)
    elif status != 503:
        upstream.breaker.succeeded(ticket)


def _framing(body: Body) -> bytes:
    if body.length is not None:
        return b"content-length: %d\r\n\r\n" % body.length
    return b"\r\n" if body.whole else b"transfer-encoding: chunked\r\n\r\n"


class Nobody(ApiError):
    """503: no upstream of a model takes requests."""

    def __init__(self, job: Job, now: float) -> None:
        name = f"The model {job.model!r}" if job.model else "The model"
        told = unavailable(f"{name} cannot be reached at the moment.", retry_seconds(job.targets, now))
        super().__init__(told.status, told.message, code=told.code, retry_after=told.retry_after)
