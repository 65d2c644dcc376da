"""models.yml: what is served. One file for a laptop, compose and Helm; ZLAI's ``models_config.yml`` is read as it is.

Every mistake is one line, ``FILE:LINE: what is wrong``, and an unknown key gets a "did you mean". All are told at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from quintet_common import values, wording, zlai_config
from quintet_common.yaml_source import ConfigError, Place, Source, read_text

__all__ = [
    "EMBEDDED",
    "Config",
    "ConfigError",
    "Kind",
    "ModelSpec",
    "RouterSpec",
    "SamplingDefaults",
    "UpstreamSpec",
    "idle_seconds",
    "load_config",
    "load_upstreams",
    "parse_config",
    "read_source",
]

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
        if not all(name.isprintable() for name in self.names):
            raise ValueError("id and aliases are one line each, of characters that can be seen")
        if any(limit is not None and limit < 1 for limit in (self.context, self.max_batch, self.max_waiting)):
            raise ValueError("context, max_batch and max_waiting must be at least 1")
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


class RouterSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How the router admits requests. What is None is the router's own default; its options go before all of this.

    ``keys`` is the file that ``quintet keys`` writes, ``redis`` a ``redis://`` URL through which several routers share
    the keys' limits. ``max_concurrent`` is the limit of requests at one upstream; ``max_waiting`` per model queue for
    at most ``queue_wait`` seconds. ``load_wait``: how long a request waits for a model that is still loading. After
    SIGTERM the router goes on for ``drain_delay`` seconds, then open requests have ``grace`` seconds to end.
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


def load_config(path: str | Path) -> Config:
    """Read, check and return models.yml; relative model paths are taken from its folder.

    Raises ConfigError with a line for each mistake that says where and what.
    """
    file = Path(path)
    return parse_config(read_text(file), file)


def parse_config(text: str, file: Path) -> Config:
    source = Source(text, file, zlai_config.names_of)
    data = source.data
    if not isinstance(data, dict):
        source.refuse([f"{file}:1: expected a mapping with the key 'models'."])
    reading = _Reading(source)
    if zlai_config.KEY in data:
        try:
            data = zlai_config.translate(data)
        except msgspec.ValidationError as error:
            reading.complain(error, [])
            reading.end()
    config = reading.config(data)
    reading.end()
    return config


def load_upstreams(path: str | Path) -> list[UpstreamSpec]:
    """Read and check a file with a list of upstreams, in YAML or JSON: addresses, or entries as in models.yml.

    Raises ConfigError with a line for each mistake that says where and what.
    """
    file = Path(path)
    source = Source(read_text(file), file)
    at: Place = []
    entries = source.data
    if isinstance(entries, dict) and set(entries) == {"upstreams"}:
        at, entries = ["upstreams"], entries["upstreams"]
    if not isinstance(entries, list):
        source.refuse([f"{file}:1: expected a list of upstreams."])
    reading = _Reading(source)
    found = reading.upstreams([{"url": entry} if isinstance(entry, str) else entry for entry in entries], at)
    reading.end()
    return found


def read_source(file: Path) -> Source:
    """A models.yml as its data and its lines. Raises ConfigError."""
    return Source(read_text(file), file, zlai_config.names_of)


_CHOICES: dict[str, list[str]] = {
    "kind": list(get_args(Kind)),
    "dtype": list(get_args(Dtype)),
    "auto_tools": list(get_args(AutoTools)),
    "balance": list(get_args(Balance)),
    "discovery": ["static", "dns"],
    "model_type": zlai_config.TYPES,
    "load_method": [f"{prefix}…" for prefix in zlai_config.METHODS],
}
_TABLES: dict[str, type[msgspec.Struct]] = {
    "models": ModelSpec,
    "upstreams": UpstreamSpec,
    "sampling": SamplingDefaults,
    "router": RouterSpec,
}
_NEEDED = ("id", "kind", "path")
_FOLDERS = ("loras", "voices")
"""Settings of engines that are paths."""

StructT = TypeVar("StructT", bound=msgspec.Struct)


class _Reading:
    """What is made of a file, and all that is wrong with it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._folder = source.file.parent
        self._faults: list[tuple[int, str]] = []

    def end(self) -> None:
        """Raises ConfigError if anything was wrong."""
        if self._faults:
            self._source.refuse([f"{self._source.file}:{line}: {text}" for line, text in sorted(self._faults)])

    def config(self, data: dict[Any, Any]) -> Config:
        lists = {key: data[key] for key in ("models", "upstreams") if isinstance(data.get(key), list)}
        rest = self._convert({key: value for key, value in data.items() if key not in lists}, Config, []) or Config()
        models = self._models(lists.get("models", []))
        upstreams = self.upstreams(lists.get("upstreams", []), ["upstreams"])
        router = rest.router
        if router.keys is not None:
            if text := values.path_mistake(self._folder, router.keys):
                self._fault(["router", "keys"], f"keys: {text}")
            else:
                router = msgspec.structs.replace(router, keys=_resolved(self._folder, router.keys))
        return Config(models=models, upstreams=upstreams, router=router)

    def upstreams(self, entries: list[Any], at: Place) -> list[UpstreamSpec]:
        """Entries of the list that stands at the place ``at``."""
        found = []
        for index, entry in enumerate(entries):
            if (upstream := self._convert(entry, UpstreamSpec, [*at, index], "upstreams")) is None:
                continue
            if text := values.url_mistake(upstream.url):
                self._fault([*at, index, "url"], f"url: {text}")
            found.append(upstream)
        return found

    def complain(self, error: msgspec.ValidationError, at: Place, table: str = "") -> None:
        """Keep a mistake in what stands at ``at``, an entry of the list ``table`` if it is that of one."""
        complaint = wording.read(str(error))
        path = [*at, *complaint.path]
        keys = [table, *(part for part in path if isinstance(part, str))]
        if complaint.unknown is not None:
            known = _TABLES.get(keys[-1], Config).__struct_fields__
            hint = wording.meant(complaint.unknown, known)
            return self._fault([*path, complaint.unknown], f"unknown key {complaint.unknown!r}{hint}")
        if complaint.missing is not None:
            return self._fault(path, f"the key {complaint.missing!r} is missing.")
        entry = f"[{path[-1]}]" if path and isinstance(path[-1], int) else ""
        name = f"{keys[-1]}{entry}" if keys[-1] else "the file"
        if complaint.choice is None:
            return self._fault(path, f"{name}: {complaint.text}.")
        choices = _CHOICES.get(keys[-1], [])
        hint = wording.meant(complaint.choice, choices)
        return self._fault(path, f"{name}: {complaint.choice!r} is not one of {', '.join(choices)}{hint}")

    def _fault(self, place: Place, text: str) -> None:
        self._faults.append((self._source.line(place), text))

    def _convert(self, data: Any, kind: type[StructT], at: Place, table: str = "") -> StructT | None:
        try:
            return msgspec.convert(data, kind)
        except msgspec.ValidationError as error:
            self.complain(error, at, table)
            return None

    def _models(self, entries: list[Any]) -> list[ModelSpec]:
        found: list[ModelSpec] = []
        seen: dict[str, int] = {}
        defaults: dict[str, int] = {}
        for index, entry in enumerate(entries):
            if isinstance(entry, dict) and entry.get("auto_tools") is False:
                entry = {**entry, "auto_tools": "off"}  # which YAML reads as false
            if (spec := self._model(entry, ["models", index])) is None:
                continue
            if (wrong := _unusable(spec, self._folder)) is not None:
                self._fault(["models", index, *wrong[0]], f"{': '.join(wrong[0])}: {wrong[1]}")
                continue
            spec = _absolute(spec, self._folder)
            self._check_names(spec, index, seen, defaults)
            for place, text in values.mistakes_in(spec):
                self._fault(["models", index, *place], f"{': '.join(place)}: {text}")
            found.append(spec)
        return found

    def _model(self, entry: Any, place: Place) -> ModelSpec | None:
        """An entry, less the keys that are wrong; None where it is none without them."""
        whole = entry
        while True:
            try:
                return msgspec.convert(entry, ModelSpec)
            except msgspec.ValidationError as error:
                complaint = wording.read(str(error))
                if complaint.missing is None or entry is whole:  # else it is most likely there, under a wrong name
                    self.complain(error, place, "models")
            key = complaint.path[0] if complaint.path else complaint.unknown
            if not isinstance(entry, dict) or key not in entry or key in _NEEDED:
                return None
            entry = {name: value for name, value in entry.items() if name != key}

    def _check_names(self, spec: ModelSpec, index: int, seen: dict[str, int], defaults: dict[str, int]) -> None:
        """No name, and no default of a kind, twice. ``seen`` and ``defaults`` have the lines of those before."""
        place: Place = ["models", index]
        line = self._source.line(place)
        for name in spec.names:
            if name in seen:
                self._fault(place, f"the name {name!r} is taken by the model on line {seen[name]}.")
            seen.setdefault(name, line)
        if spec.default and spec.kind in defaults:
            self._fault(place, f"line {defaults[spec.kind]} has the default of kind {spec.kind!r} already.")
        if spec.default:
            defaults.setdefault(spec.kind, line)


def _unusable(spec: ModelSpec, folder: Path) -> tuple[list[str], str] | None:
    """The keys of a path that the system cannot follow, and why."""
    given = [(["path"], spec.path), *((["engine_args", name], spec.engine_args.get(name)) for name in _FOLDERS)]
    for place, path in given:
        if isinstance(path, str) and (text := values.path_mistake(folder, path)):
            return place, text
    return None


def _absolute(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Resolve paths that are written as a relative directory; hub ids and embedded names stay as they are."""
    for name in _FOLDERS:
        if isinstance(given := spec.engine_args.get(name), str):
            spec = msgspec.structs.replace(spec, engine_args={**spec.engine_args, name: _resolved(folder, given)})
    # Nobody on a hub is called models: what is written so and not there is a slip, and no hub is asked for it.
    local = spec.path.startswith((".", "~", "models/")) or (folder / spec.path).is_dir()
    if spec.embedded is not None or not local:
        return spec
    return msgspec.structs.replace(spec, path=_resolved(folder, spec.path))


def _resolved(folder: Path, path: str) -> str:
    return str((folder / Path(path).expanduser()).resolve())
