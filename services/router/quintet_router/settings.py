"""What an operator may tune: sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from quintet_common.models_yml import Balance

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """The router's limits. The defaults suit models that think for minutes and send nothing meanwhile."""

    max_body: int = 64 * MIB
    """Larger request bodies get 413."""
    max_head: int = 64 << 10
    """A request line and headers larger than this get 431."""
    scan_window: int = 256 << 10
    """How much of a form is searched for its model before it streams to the only upstream that could serve it."""
    head_timeout: float = 30.0
    """A client must have sent its headers by then."""
    body_timeout: float = 60.0
    """A client that sends nothing of its body for so long gets 408."""
    connect_timeout: float = 3.0
    ca_file: str | None = None
    """Certificate authorities to trust beside the system's own, in PEM."""
    balance: Balance = "auto"
    """How a model's replicas share its requests, where the upstream's entry does not say."""
    session_header: str = "x-session-id"
    prefix_chunks: int = 1 << 16
    """So many beginnings of conversations are remembered, of about 1 KiB each."""
    load_factor: float = 1.25
    """A replica with more than this many times the mean of outstanding requests, and one, is no longer preferred."""
    busy_seconds: float = 1.0
    """A replica that has answered "not now" (429, 502, 503) is asked last for so long."""
    retry_share: float = 0.2
    """Of the requests in ``retry_window``, how many may be sent to an upstream again."""
    retry_minimum: int = 64
    """So many may be sent again in any case."""
    retry_window: float = 10.0
    first_byte_timeout: dict[str, float] = field(default_factory=lambda: {"": 600.0, "image": 1800.0})
    """By kind of model: from a request's arrival at an upstream to the answer's headers; ``""`` is for all others."""
    gap_timeout: float = 120.0
    """Longest silence in the middle of an answer."""
    stall_timeout: float = 60.0
    """A client that reads nothing of its answer for so long is dropped."""
    idle_timeout: float = 60.0
    """Idle connections to our own services are closed after this; theirs stay open longer."""
    foreign_idle_timeout: float = 4.0
    """The same for other servers: many close theirs after 5 s."""
    poll_seconds: float = 5.0
    """How often an upstream whose models are all ready is asked for them."""
    poll_waiting_seconds: float = 1.0
    """The same while it is down or loading."""
    poll_timeout: float = 3.0
    """An upstream that takes longer gets no new requests while another replica answers, and the second time those that
    wait there go to another one."""
    dns_seconds: float = 5.0
    """How often the addresses of an upstream with ``discovery: dns`` are asked for."""
    file_seconds: float = 1.0
    """How often a watched file is looked at."""
    start_seconds: float = 60.0
    """So long after the start an unknown model is 503 rather than 404 while some upstream has never answered."""
    absent_seconds: float = 10.0
    """So long an upstream where nothing listens, or that answers 5xx, may be starting as well: it is no news yet."""
    reload_seconds: float = 10.0
    """So long after a reload a promised model that no upstream has is 503 rather than 404: the services read the same
    file, and may take longer."""
    breaker_failures: int = 5
    """So many failures in a row open an upstream's circuit; a refused connection opens it at once."""
    watch_seconds: float = 1.0
    """How often the times above are checked for requests in flight."""
    max_concurrent: int | None = None
    """Requests at one upstream at a time. The others wait for their turn."""
    max_waiting: int = 256
    """So many may wait for one model; the next one gets 429."""
    queue_wait: float = 30.0
    """A request that has waited for its turn so long gets 503."""
    load_wait: float = 30.0
    """So long a request waits for a model that is loading, or whose service is not up yet; then it gets 503."""
    restart_wait: float = 10.0
    """So long after the last of a model's upstreams refused a connection for the first time, requests wait for one to
    be started again, if they wait for models at all."""
    cors: tuple[str, ...] = ()
    """Origins of pages that may use the router from a browser; ``*`` is all."""
    access_log: bool = False
    open_metrics: bool = True
    """Whether ``/metrics`` is answered without a key where keys are needed."""

    def first_byte(self, kind: str | None) -> float:
        return self.first_byte_timeout.get(kind or "", self.first_byte_timeout[""])
