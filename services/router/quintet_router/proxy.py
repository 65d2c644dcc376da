"""The hot path: a request's body and model, an upstream for it, and what becomes of every attempt."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic
from urllib.parse import parse_qsl

import msgspec
from quintet_common.errors import CLIENT_CLOSED_REQUEST, ApiError, bad_request, model_not_found
from starlette.types import Receive, Scope, Send

from quintet_router.balance import choose, retry_seconds
from quintet_router.body import Body, BodyReader, ClientGone, too_large
from quintet_router.catalog import Target
from quintet_router.exchange import Exchange, Outcome
from quintet_router.fleet import Fleet
from quintet_router.headers import forwarded, request_id
from quintet_router.inbound import HANG_UP
from quintet_router.metrics import Metrics
from quintet_router.paths import Path
from quintet_router.replies import send_error, unavailable
from quintet_router.settings import Settings
from quintet_router.upstream.breaker import BAD_STATUS, Failure
from quintet_router.upstream.connection import Connection
from quintet_router.upstream.upstream import Upstream

log = logging.getLogger("quintet.router")
access_log = logging.getLogger("quintet.access")
_OTHER_REPLICA = frozenset((429, 502, 503))
_NOT_HERE = frozenset((404,))


@dataclass(slots=True)
class Job:
    """A request that is ready to be sent to any of ``targets``."""

    path: Path
    model: str
    kind: str | None
    targets: list[Target]
    body: Body
    headers: bytes
    host: bytes
    """What the client called the router, unless a proxy before us has said so in a header of its own."""
    scope: Scope
    upstream: str = ""
    retries: int = 0


class Proxy:
    """Forwards requests to the upstreams of ``fleet``. Calling it is one request."""

    def __init__(self, fleet: Fleet, metrics: Metrics, settings: Settings) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._settings = settings
        self._active: set[Exchange] = set()

    async def watch(self) -> None:
        """End requests that take too long and close connections that nobody uses, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.watch_seconds)
            now = monotonic()
            for exchange in list(self._active):
                exchange.check(now)
            for upstream in self._fleet.upstreams:
                upstream.pool.expire(now)

    async def __call__(self, path: Path, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = monotonic()
        fields = dict(scope["headers"])
        own_id = request_id(fields)
        exchange = Exchange(send, receive, self._settings, own_id)
        job: Job | None = None
        code = CLIENT_CLOSED_REQUEST
        self._active.add(exchange)
        try:
            job = await self._prepare(path, scope, receive, fields, own_id)
            code = await self._forward(job, exchange)
        except ClientGone:
            pass
        except ApiError as error:
            code = error.status
            await send_error(send, error, [(b"x-request-id", own_id)])
        except Exception:
            log.exception("%s failed", path.label)
            code = 500
            if not exchange.status:
                fault = ApiError(500, "The router failed on this request; its log has the details.")
                await send_error(send, fault, [(b"x-request-id", own_id)])
        finally:
            self._active.discard(exchange)
            exchange.close()
            self._record(path, job, exchange, code, arrived)
        if exchange.status and code != exchange.status:
            await self._cut(scope, receive, flush=code != CLIENT_CLOSED_REQUEST)

    # What is asked, and of whom.

    async def _prepare(
        self, path: Path, scope: Scope, receive: Receive, fields: dict[bytes, bytes], own_id: bytes
    ) -> Job:
        if path.method == "GET":
            body = Body(b"", _model_in_query(scope["query_string"]), length=None, read_at=monotonic())
        else:
            body = await self._read(path, receive, fields)
        targets, model, kind = self._find(path, body)
        headers = forwarded(scope["headers"], fields) + b"x-request-id: " + own_id + b"\r\n"
        host = b"" if b"x-forwarded-host" in fields else fields.get(b"host", b"")
        return Job(path, model, kind, targets, body, headers, host, scope)

    async def _read(self, path: Path, receive: Receive, fields: dict[bytes, bytes]) -> Body:
        settings = self._settings
        reader = BodyReader(receive, fields, settings.max_body, settings.body_timeout)
        content_type = fields.get(b"content-type", b"")
        if not content_type.lower().startswith(b"multipart/"):
            return await reader.read_json()
        only = self._fleet.catalog.serving(path.kinds)
        streams = len(only) == 1 and only[0].rename is None
        return await reader.read_form(content_type, settings.scan_window if streams else settings.max_body)

    def _find(self, path: Path, body: Body) -> tuple[list[Target], str, str | None]:
        """The upstreams for a request, and the model's id and kind for its labels. Raises ApiError 400, 404, 503."""
        catalog = self._fleet.catalog
        if body.model:
            found = catalog.find(body.model)
            if found is None:
                raise self._fleet.may_come(body.model) or model_not_found(body.model)
            return found.usable, found.id, found.kind
        if path.ask_all or not body.whole:
            targets = catalog.serving(path.kinds)
            if targets:
                return targets, "", path.kinds[0]
        if not path.kinds:
            raise bad_request("Missing required field: model.", "model", "missing_required_parameter")
        found = catalog.default(path.kinds)
        if found is None:
            raise self._fleet.may_come(None) or _none_of(path)
        return found.usable, found.id, found.kind

    # Attempts.

    async def _forward(self, job: Job, exchange: Exchange) -> int:
        """Try one upstream after the other until the client has an answer; its status, or 499 when the client left.

        A request that was sent is sent again only once, and only where nothing came back on a connection that had been
        idle: the upstream had most likely closed it already. Raises ApiError when no upstream answers.
        """
        if job.body.whole:
            exchange.listen()
        tried: list[Upstream] = []
        replayed = False
        while True:
            now = monotonic()
            target = choose(job.targets, tried, now)
            if target is None:
                raise _nobody(job, now)
            upstream = target.upstream
            upstream.outstanding += 1
            upstream.breaker.taken()
            job.upstream = upstream.label
            try:
                # What streams through cannot be sent again, so it must not meet a connection that is just closing.
                idle = upstream.pool.take() if job.body.whole else None
                connection = idle or await self._connect(upstream)
                if connection is None:
                    tried.append(upstream)
                    job.retries += 1
                    continue
                reused = connection.reused
                outcome = await self._attempt(job, exchange, target, connection, tried)
            finally:
                upstream.outstanding -= 1
                exchange.detach()
                upstream.breaker.undecided()
            if outcome is Outcome.DONE:
                _judge(upstream, exchange.status)
                return exchange.status
            if outcome is Outcome.OTHER:
                tried.append(upstream)
            elif outcome is Outcome.BROKEN and reused and not (replayed or exchange.status):
                replayed = True
            else:
                return await self._end(upstream, exchange, outcome)
            job.retries += 1

    async def _connect(self, upstream: Upstream) -> Connection | None:
        """A new connection; None when nothing listens there."""
        try:
            return await upstream.pool.connect()
        except (OSError, TimeoutError) as error:
            upstream.breaker.failed(Failure.CONNECT, monotonic())
            self._fleet.ask_now(upstream)
            log.debug("%s cannot be reached: %r", upstream.label, error)
            return None

    async def _attempt(
        self, job: Job, exchange: Exchange, target: Target, connection: Connection, tried: list[Upstream]
    ) -> Outcome:
        upstream, scope, path = target.upstream, job.scope, job.path
        body = job.body if target.rename is None else job.body.with_model(target.rename)
        method, raw_path, query = scope["method"].encode(), scope["raw_path"], scope["query_string"]
        head = upstream.request_head(method, path, raw_path, query, job.host) + job.headers + _framing(body)
        data = body.data
        if body.length is None and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        others = body.whole and len(tried) + 1 < len(job.targets)
        other_on = (_NOT_HERE if path.ask_all else _OTHER_REPLICA) if others else ()
        if not job.retries:
            cell = self._metrics.cell(job.model, path.label, upstream.label)
            cell.overhead.observe(monotonic() - job.body.read_at)
        if not body.whole:
            left = self._settings.max_body if body.length is None else body.length
            exchange.upload(body.length is None, left - len(body.data))
        return await exchange.attempt(
            upstream.pool, connection, head, data, self._settings.first_byte(job.kind), other_on
        )

    # Ends.

    async def _end(self, upstream: Upstream, exchange: Exchange, outcome: Outcome) -> int:
        """The end of a request without a complete answer: the status that it counts as. Raises ApiError if the client
        can still be told."""
        error = self._explain(upstream, exchange, outcome)
        if error is None:
            return CLIENT_CLOSED_REQUEST
        if not exchange.status:
            raise error
        if exchange.between_events:
            await exchange.last_words(b"data: " + msgspec.json.encode(error.body) + b"\n\n")
        return error.status

    def _explain(self, upstream: Upstream, exchange: Exchange, outcome: Outcome) -> ApiError | None:
        """What to tell the client, if it is still there; and what the failure says about the upstream."""
        if outcome is Outcome.TIMEOUT:
            upstream.breaker.failed(Failure.TIMEOUT, monotonic())
            return ApiError(504, "The model did not answer in time.", code="upstream_timeout")
        if outcome is Outcome.BROKEN:
            log.warning("%s broke off: %r", upstream.label, exchange.error)
            upstream.breaker.failed(Failure.BROKEN, monotonic())
            self._fleet.ask_now(upstream)
            return ApiError(502, "The connection to the model broke.", code="upstream_failed")
        if outcome is Outcome.TOO_LARGE:
            return too_large(self._settings.max_body)
        if outcome is Outcome.STALLED and not exchange.status:
            return ApiError(408, "The request's body did not arrive in time.", code="request_timeout")
        return None

    async def _cut(self, scope: Scope, receive: Receive, flush: bool) -> None:
        """Close the client's connection: its answer is not complete and must not look so."""
        hang_up = scope.get("extensions", {}).get(HANG_UP)
        if hang_up is None:  # a server that is not ours closes by itself when an app returns early
            return
        hang_up(flush)
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            hang_up(False)

    def _record(self, path: Path, job: Job | None, exchange: Exchange, code: int, arrived: float) -> None:
        seconds = monotonic() - arrived
        model, upstream = (job.model, job.upstream) if job is not None else ("", "")
        cell = self._metrics.cell(model, path.label, upstream)
        cell.codes[code] = cell.codes.get(code, 0) + 1
        cell.latency.observe(seconds)
        if exchange.first_byte_at:
            cell.first_byte.observe(exchange.first_byte_at - arrived)
        if code == CLIENT_CLOSED_REQUEST:
            cell.disconnects += 1
        if job is not None:
            cell.retries += job.retries
        if self._settings.access_log:
            line = {
                "request_id": exchange.request_id.decode(),
                "service": "router",
                "path": path.label,
                "model": model,
                "upstream": upstream,
                "code": code,
                "seconds": round(seconds, 4),
            }
            access_log.info(msgspec.json.encode(line).decode())


def _judge(upstream: Upstream, status: int) -> None:
    """What an answer says about its upstream. A refusal is no fault of it, and 503 says nothing new."""
    if status in BAD_STATUS:
        upstream.breaker.failed(Failure.STATUS, monotonic())
    elif status != 503:
        upstream.breaker.succeeded()


def _framing(body: Body) -> bytes:
    if body.length is not None:
        return b"content-length: %d\r\n\r\n" % body.length
    return b"\r\n" if body.whole else b"transfer-encoding: chunked\r\n\r\n"


def _model_in_query(query: bytes) -> str | None:
    if b"model=" not in query:
        return None
    return next((value for key, value in parse_qsl(query.decode("latin-1")) if key == "model"), None)


def _none_of(path: Path) -> ApiError:
    kind = path.kinds[0]
    return ApiError(404, f"No model of kind {kind!r} is served here.", param="model", code="model_not_found")


def _nobody(job: Job, now: float) -> ApiError:
    name = f"The model {job.model!r}" if job.model else "The model"
    return unavailable(f"{name} cannot be reached at the moment.", retry_seconds(job.targets, now))
