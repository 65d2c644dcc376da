"""What a request asks, and of whom: its body is read, its model found, and its headers made ready to be sent on."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from urllib.parse import parse_qsl

from quintet_common.errors import ApiError, missing_field

from quintet_router.access.gate import check_model, no_model
from quintet_router.access.keyring import Client
from quintet_router.affinity import TALKS
from quintet_router.balance import Balancer, Hint
from quintet_router.body import Body, BodyReader
from quintet_router.catalog import Target
from quintet_router.downstream import Downstream
from quintet_router.fleet import Fleet
from quintet_router.headers import forwarded, without
from quintet_router.lobby import Lobby, NotYet, still_loading
from quintet_router.paths import Path
from quintet_router.recorder import Seen
from quintet_router.retries import Attempts, Budgets
from quintet_router.settings import Settings
from quintet_router.spans import Spans


@dataclass(slots=True)
class Job:
    """A request that is ready to be sent to any of ``targets``."""

    path: Path
    seen: Seen
    model: str
    kind: str | None
    targets: list[Target]
    body: Body
    headers: bytes
    host: bytes
    """What the client called the router, unless a proxy before us has said so in a header of its own."""
    request: Downstream
    attempts: Attempts
    hint: Hint | None
    waited: bool = False
    """Whether it has come to a model that loads again, and has waited for it."""
    returned: bool = False
    """Whether it has waited for an upstream to be started again."""


class Intake:
    """Makes jobs of requests."""

    def __init__(
        self, fleet: Fleet, settings: Settings, balancer: Balancer, lobby: Lobby, spans: Spans | None = None
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._balancer = balancer
        self._lobby = lobby
        self._spans = spans
        self._budgets = Budgets(settings)
        self._session_header = settings.session_header.lower().encode()

    async def prepare(self, path: Path, seen: Seen, request: Downstream) -> Job:
        """Waits for the body, and for a model that is on its way.

        Raises ClientGone, and ApiError for what cannot be sent to anybody.
        """
        exchange, fields = seen.exchange, request.fields
        if path.method == "GET":
            body = Body(b"", _model_in_query(request.query), length=None, read_at=monotonic())
        else:
            reader = BodyReader(request, self._settings.max_body, self._settings.body_timeout)
            content_type = fields.get(b"content-type", b"")
            if content_type.lower().startswith(b"multipart/"):
                body = await self._read_form(reader, path, seen.client, content_type)
            else:
                data = await reader.read_json() if request.more else request.take()
                body = reader.take_json(data, path.label in TALKS)
                if seen.client.restricted and body.model:
                    body = body.with_model(body.model)  # one that is there twice might be read otherwise elsewhere
        if body.whole:
            exchange.listen()
        targets, model, kind = await self._wait_for(path, body, seen)
        seen.model = model
        headers = forwarded(request.headers, fields) + b"x-request-id: " + exchange.request_id + b"\r\n"
        if self._spans is not None:
            headers = without(b"traceparent", headers) + self._spans.header(seen.span)
        host = b"" if b"x-forwarded-host" in fields else fields.get(b"host", b"")
        hint = None
        if len(targets) > 1 and body.whole:
            session = fields.get(self._session_header)
            hint = self._balancer.hint(targets, session, body)
        attempts = Attempts(self._budgets.of(model))
        return Job(path, seen, model, kind, targets, body, headers, host, request, attempts, hint)

    async def wait_again(self, job: Job) -> None:
        """For a job that came to a model which loads again, as its upstream has just said: wait until that is known
        here, and then as long as for any that loads. Raises ApiError, and ClientGone."""
        await self._lobby.news(job.model, job.seen.exchange)
        await self.find_again(job)
        job.attempts.tried.clear()

    async def wait_for_return(self, job: Job, until: float) -> None:
        """For a job whose upstreams are all gone: wait for one of those that have its model now to answer, and then as
        long as for any model that loads. Raises ApiError, at once where there is no such model any more, and
        ClientGone."""
        job.returned = True

        def over() -> bool:
            try:
                targets, _, _ = self._find(job.path, job.body, job.seen.client)
            except ApiError:
                return True
            return monotonic() >= until or any(each.upstream.breaker.reachable for each in targets)

        await self._lobby.hold(job.model, over, until, job.seen.exchange)
        await self.find_again(job)
        job.attempts.tried.clear()

    def targets_of(self, job: Job) -> list[Target]:
        """Where a job's model can answer now. Raises ApiError when there is no such model any more."""
        try:
            return self._find(job.path, job.body, job.seen.client)[0]
        except NotYet:
            return []

    async def find_again(self, job: Job) -> None:
        """For a job that has waited: a reload may have given its model to others, or its name to another model. Waits
        for one that loads. Raises ApiError, and ClientGone."""
        job.targets, job.model, job.kind = await self._wait_for(job.path, job.body, job.seen)
        job.seen.model = job.model

    async def _wait_for(self, path: Path, body: Body, seen: Seen) -> tuple[list[Target], str, str | None]:
        try:
            return self._find(path, body, seen.client)
        except NotYet:
            return await self._lobby.wait(lambda: self._find(path, body, seen.client), seen.exchange)

    async def _read_form(self, reader: BodyReader, path: Path, client: Client, content_type: bytes) -> Body:
        settings = self._settings
        if client.restricted:
            return await reader.read_form(content_type, settings.max_body, to_end=True)
        only = self._fleet.catalog.serving(path.kinds)
        streams = len(only) == 1 and only[0].rename is None and not only[0].upstream.spec.aliases
        return await reader.read_form(content_type, settings.scan_window if streams else settings.max_body)

    def _find(self, path: Path, body: Body, client: Client) -> tuple[list[Target], str, str | None]:
        """The upstreams for a request, and the model's id and kind for its labels.

        Raises ApiError 400 and 404, and NotYet for a model that is on its way.
        """
        catalog = self._fleet.catalog
        if body.model:
            found = catalog.find(body.model)
            if found is None:
                raise self._missing(body.model, client)
        else:
            if (path.ask_all and not client.restricted) or not body.whole:
                targets = catalog.serving(path.kinds)
                if targets:
                    return targets, "", path.kinds[0] if path.kinds else None
            if path.ask_all and not catalog.serving(path.kinds):
                raise self._fleet.may_come(None) or _nothing_for(path)
            if not path.kinds:
                raise missing_field("model")
            default = catalog.default(path.kinds)
            if default is None:
                raise self._promised("") or _none_of(path)
            found = default
        if client.restricted:
            check_model(client, found.id, found.aliases, body.model)
        if found.kind is not None and path.kinds and found.kind not in path.kinds:
            raise _wrong_kind(path, found.id, found.kind)
        if found.loading and self._settings.load_wait:
            raise still_loading(found)
        return found.usable, found.id, found.kind

    def _missing(self, name: str, client: Client) -> ApiError:
        """Why there is no model of this name."""
        may_tell = client.may_use(name)
        error = (self._fleet.left_out_of(name) or self._promised(name)) if may_tell else None
        return error or no_model(client, name, self._fleet.catalog.names)

    def _promised(self, name: str) -> ApiError | None:
        """503 for a model that may come, as NotYet where it is worth waiting for."""
        error = self._fleet.may_come(name or None)
        if error is None or not self._fleet.worth_waiting(name or None):
            return error
        # Other names are whatever a client wrote, which must not become a label of a metric.
        return NotYet(name if name in self._fleet.expected else "", error)


def _model_in_query(query: bytes) -> str | None:
    if b"model=" not in query:
        return None
    return next((value for key, value in parse_qsl(query.decode("latin-1")) if key == "model"), None)


def _none_of(path: Path) -> ApiError:
    kind = path.kinds[0]
    return ApiError(404, f"No model of kind {kind!r} is served here.", param="model", code="model_not_found")


def _nothing_for(path: Path) -> ApiError:
    return ApiError(404, f"Nothing here serves {path.label}.", param="model", code="model_not_found")


def _wrong_kind(path: Path, model: str, kind: str) -> ApiError:
    """The services say the same, but one that has no such path could only say that."""
    wanted = " or ".join(repr(each) for each in path.kinds)
    message = f"The model {model!r} is of kind {kind!r}; {path.label} needs one of kind {wanted}."
    return ApiError(404, message, param="model", code="model_not_found")
