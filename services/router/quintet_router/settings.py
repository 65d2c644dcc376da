"""What an operator may tune: sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    poll_timeout: float = 5.0
    start_seconds: float = 60.0
    """So long after the start an unknown model is 503 rather than 404 while some upstream has never answered."""
    breaker_failures: int = 5
    """So many failures in a row open an upstream's circuit; a refused connection opens it at once."""
    watch_seconds: float = 1.0
    """How often the times above are checked for requests in flight."""
    access_log: bool = False

    def first_byte(self, kind: str | None) -> float:
        return self.first_byte_timeout.get(kind or "", self.first_byte_timeout[""])
