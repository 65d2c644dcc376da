"""The entries of models.yml: what they may hold, and what their values are when they say nothing."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

Kind = Literal["chat", "multimodal", "image", "tts", "embedding", "rerank"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
AutoTools = Literal["off", "eager"]
Balance = Literal["auto", "least", "session", "prefix"]
DNS = "dns+"
"""A URL that starts with this is a name whose addresses are replicas."""
EMBEDDED = "embedded:"
"""A path that starts with this names a model that comes in a wheel or with the service: no hub, no download."""


class SamplingDefaults(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """What a chat request gets that does not say it itself; what is not set here is the model's own default."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None


class ModelSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One entry of ``models:``.

    ``path`` is a directory, a hub id, or ``embedded:NAME``. ``memory`` maps a device to its limit (``{0: 20GB, cpu:
    8GB}``). ``keep`` is ``always`` or a time after the last request (``10m idle``) when the model is unloaded.
    ``context`` limits prompt + answer in tokens, ``max_batch`` the requests that run together, ``max_waiting`` those
    that queue before 429. ``auto_tools: eager`` is for models too small to decide on a call: with tools offered and the
    last message the user's they call, after a tool result they answer. ``sampling`` is for chat requests that leave it
    to the server. ``engine_args`` goes to the engine as it is.
    """

    id: str
    kind: Kind
    path: str
    aliases: list[str] = []
    engine: str = "auto"
    dtype: Dtype = "auto"
    device: str = "auto"
    memory: dict[int | str, str] = {}
    keep: str = "always"
    default: bool = False
    owned_by: str = "quintet"
    context: int | None = None
    max_batch: int | None = None
    max_waiting: int = 256
    auto_tools: AutoTools = "off"
    sampling: SamplingDefaults = SamplingDefaults()
    engine_args: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id is empty")
        if not self.path:
            raise ValueError("path is empty")
        for key, names in (("id", [self.id]), ("aliases", self.aliases)):
            if not all(name.isprintable() for name in names):
                raise ValueError(f"{key} takes names of one line each, of characters that can be seen")
        for key in ("context", "max_batch", "max_waiting"):
            if (limit := getattr(self, key)) is not None and limit < 1:
                raise ValueError(f"{key} must be at least 1")
        idle_seconds(self.keep)
        # JSON, and so a Helm chart's values, can only say "0".
        numbered = {int(key) if str(key).isdecimal() else key: limit for key, limit in self.memory.items()}
        msgspec.structs.force_setattr(self, "memory", numbered)

    @property
    def names(self) -> list[str]:
        """Every name the model answers to: its id, then its aliases."""
        return [self.id, *self.aliases]

    @property
    def for_worker(self) -> ModelSpec:
        """The entry without what the process that runs the model does not need to know."""
        return msgspec.structs.replace(self, aliases=[], default=False, owned_by="", sampling=SamplingDefaults())

    @property
    def embedded(self) -> str | None:
        """The name of the embedded model, or None when the weights are elsewhere."""
        return self.path.removeprefix(EMBEDDED) if self.path.startswith(EMBEDDED) else None


class UpstreamSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Anything else that speaks OpenAI, served through the router beside our own services.

    ``key`` is sent as the bearer token. ``models`` limits which of its ids are served, ``prefix`` is put before them;
    ``aliases`` maps further names to its ids. With ``discovery: dns``, or a ``url`` like ``dns+http://name:port``,
    every address of the name is an upstream of its own. ``balance`` says how replicas of its models share requests.
    """

    url: str
    key: str | None = None
    models: list[str] | None = None
    prefix: str = ""
    aliases: dict[str, str] = {}
    discovery: Literal["static", "dns"] = "static"
    balance: Balance | None = None

    @property
    def dns(self) -> bool:
        return self.discovery == "dns" or self.url.startswith(DNS)

    @property
    def http_url(self) -> str:
        """The URL without what it says of the discovery, and without a last slash."""
        return self.url.removeprefix(DNS).rstrip("/")


DRAIN_SECONDS = 30
"""``grace`` where nothing is said, of the router and of the services."""


class RouterSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How the router admits requests. What is None is the router's own default; its options go before all of this.

    ``keys`` is the file that ``quintet keys`` writes, ``redis`` a ``redis://`` URL through which several routers share
    the keys' limits. ``max_concurrent`` is the limit of requests at one upstream; ``max_waiting`` per model queue for
    at most ``queue_wait`` seconds. ``load_wait``: how long a request waits for a model that is still loading. After
    SIGTERM the router goes on for ``drain_delay`` seconds, then open requests have ``grace`` seconds to end. ``cors``
    are the origins of pages that may use the router from a browser.
    """

    keys: str | None = None
    redis: str | None = None
    open_metrics: bool = True
    max_concurrent: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_waiting: Annotated[int, msgspec.Meta(ge=0)] | None = None
    queue_wait: Annotated[float, msgspec.Meta(gt=0)] | None = None
    load_wait: Annotated[float, msgspec.Meta(ge=0)] | None = None
    drain_delay: Annotated[float, msgspec.Meta(ge=0)] | None = None
    grace: Annotated[float, msgspec.Meta(ge=0)] | None = None
    traces: str | None = None
    cors: list[str] | None = None


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The whole of models.yml."""

    models: list[ModelSpec] = []
    upstreams: list[UpstreamSpec] = []
    router: RouterSpec = RouterSpec()

    def of_kinds(self, kinds: set[str]) -> list[ModelSpec]:
        return [spec for spec in self.models if spec.kind in kinds]


_IDLE = re.compile(r"(\d+)\s*(s|m|h) idle")
_UNITS = {"s": 1, "m": 60, "h": 3600}


def idle_seconds(keep: str) -> float | None:
    """Seconds without a request after which a model is unloaded; None for ``always``."""
    if keep == "always":
        return None
    match = _IDLE.fullmatch(keep)
    if not match:
        raise ValueError(f"keep is 'always' or like '10m idle', not {keep!r}")
    return int(match[1]) * _UNITS[match[2]]
