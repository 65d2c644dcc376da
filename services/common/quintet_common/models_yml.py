"""models.yml: what is served. One file for a laptop, compose and Helm; ZLAI's ``models_config.yml`` is read as it is.

Every mistake is one line, ``FILE:LINE: what is wrong``, and an unknown key gets a "did you mean".
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml

from quintet_common import values, zlai_config

Kind = Literal["chat", "multimodal", "image", "tts", "embedding", "rerank"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
AutoTools = Literal["off", "eager"]
Balance = Literal["auto", "least", "session", "prefix"]
DNS = "dns+"
"""A URL that starts with this is a name whose addresses are replicas."""
EMBEDDED = "embedded:"
"""A path that starts with this names a model that comes in a wheel or with the service: no hub, no download."""


class ConfigError(Exception):
    """models.yml cannot be used. The text is one line for a person: where, what, and what to do."""


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
        if any(limit is not None and limit < 1 for limit in (self.context, self.max_batch, self.max_waiting)):
            raise ValueError("context, max_batch and max_waiting must be at least 1")
        idle_seconds(self.keep)

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

    Raises ConfigError with one line that says where and what.
    """
    file = Path(path)
    return parse_config(_read(file), file)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{file}: cannot be read: {reason}.") from None


def _parse(text: str, file: Path) -> tuple[Any, Any]:
    """YAML's tree, which knows the lines, and the data. Raises ConfigError."""
    try:
        node, data = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}.") from None
    _check_keys(node, file)
    return node, data


def _check_keys(root: yaml.Node | None, file: Path) -> None:
    """No key twice in one mapping: YAML's loader would drop the first without a word."""
    seen: set[yaml.Node | None] = set()
    todo: list[yaml.Node | None] = [root]
    while todo:
        node = todo.pop()
        if node in seen:  # aliases make a graph of the tree
            continue
        seen.add(node)
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            todo += [value for _, value in node.value]
            lines: dict[Any, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.value in lines:
                    raise ConfigError(f"{file}:{line}: the key {key.value!r} is on line {lines[key.value]} already.")
                lines[key.value if isinstance(key, yaml.ScalarNode) else key] = line


def parse_config(text: str, file: Path) -> Config:
    node, data = _parse(text, file)
    if not isinstance(data, dict) or node is None:
        raise ConfigError(f"{file}:1: expected a mapping with the key 'models'.")
    try:
        if zlai_config.KEY in data:
            data = zlai_config.translate(data)
        config = msgspec.convert(_with_off(data), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), node, file)) from None
    _check_names(config, node, file)
    _check_values(config, node, file)
    models = [_absolute(spec, file.parent) for spec in config.models]
    router = config.router
    if router.keys is not None:
        keys = str((file.parent / Path(router.keys).expanduser()).resolve())
        router = msgspec.structs.replace(router, keys=keys)
    return msgspec.structs.replace(config, models=models, router=router)


def _with_off(data: dict[str, Any]) -> dict[str, Any]:
    """``auto_tools: off``, which YAML reads as false, is what it says."""
    models = data.get("models")
    for entry in models if isinstance(models, list) else []:
        if isinstance(entry, dict) and entry.get("auto_tools") is False:
            entry["auto_tools"] = "off"
    return data


def load_upstreams(path: str | Path) -> list[UpstreamSpec]:
    """Read and check a file with a list of upstreams, in YAML or JSON: addresses, or entries as in models.yml.

    Raises ConfigError with one line that says where and what.
    """
    file = Path(path)
    text = _read(file)
    node, data = _parse(text, file)
    if isinstance(data, dict) and set(data) == {"upstreams"}:
        data = data["upstreams"]
    elif isinstance(data, list):  # as if it stood under the key, so that mistakes are explained in the same way
        key = yaml.ScalarNode("tag:yaml.org,2002:str", "upstreams", node.start_mark, node.start_mark)
        node = yaml.MappingNode("tag:yaml.org,2002:map", [(key, node)], node.start_mark, node.end_mark)
    if not isinstance(data, list):
        raise ConfigError(f"{file}:1: expected a list of upstreams.")
    entries = [{"url": entry} if isinstance(entry, str) else entry for entry in data]
    try:
        upstreams = msgspec.convert({"upstreams": entries}, Config).upstreams
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), node, file)) from None
    _check_urls(upstreams, node, file)
    return upstreams


def _absolute(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Resolve paths that are written as a relative directory; hub ids and embedded names stay as they are."""
    for name in ("loras", "voices"):
        if isinstance(given := spec.engine_args.get(name), str):
            resolved = str((folder / Path(given).expanduser()).resolve())
            spec = msgspec.structs.replace(spec, engine_args={**spec.engine_args, name: resolved})
    local = spec.path.startswith((".", "~")) or (folder / spec.path).is_dir()
    if spec.embedded is not None or not local:
        return spec
    return msgspec.structs.replace(spec, path=str((folder / Path(spec.path).expanduser()).resolve()))


def _check_names(config: Config, node: yaml.Node, file: Path) -> None:
    seen: dict[str, int] = {}
    defaults: dict[str, int] = {}
    for index, spec in enumerate(config.models):
        line = _line_of(node, ["models", index])
        for name in spec.names:
            if name in seen:
                raise ConfigError(f"{file}:{line}: the name {name!r} is taken by the model on line {seen[name]}.")
            seen[name] = line
        if spec.default and spec.kind in defaults:
            raise ConfigError(
                f"{file}:{line}: line {defaults[spec.kind]} has the default of kind {spec.kind!r} already."
            )
        if spec.default:
            defaults[spec.kind] = line


def _check_values(config: Config, node: yaml.Node, file: Path) -> None:
    for index, spec in enumerate(config.models):
        if mistake := values.mistake_in(spec):
            key, text = mistake
            raise ConfigError(f"{file}:{_line_of(node, ['models', index, key])}: {key}: {text}")
    _check_urls(config.upstreams, node, file)


def _check_urls(upstreams: list[UpstreamSpec], node: yaml.Node, file: Path) -> None:
    for index, upstream in enumerate(upstreams):
        if text := values.url_mistake(upstream.url):
            raise ConfigError(f"{file}:{_line_of(node, ['upstreams', index, 'url'])}: url: {text}")


def line_in(file: Path, path: list[str | int]) -> int:
    """The 1-based line of what stands at ``path`` in a models.yml. Raises ConfigError."""
    node, _ = _parse(_read(file), file)
    return _line_of(node, path)


_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`")
_MISSING = re.compile(r"Object missing required field `(.*?)`")
_ENUM = re.compile(r"Invalid enum value '?(.*?)'?$")
_AT = re.compile(r" - at `\$(.*)`$")
_TYPES = re.compile(r"`([a-z| ]+)`")
_WORDS = {
    "object": "keys with values",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}
_CHOICES: dict[str, list[str]] = {
    "kind": list(get_args(Kind)),
    "dtype": list(get_args(Dtype)),
    "auto_tools": list(get_args(AutoTools)),
    "balance": list(get_args(Balance)),
    "discovery": ["static", "dns"],
    "model_type": zlai_config.TYPES,
    "load_method": [f"{prefix}…" for prefix in zlai_config.METHODS],
}


def _explain(message: str, node: yaml.Node, file: Path) -> str:
    """msgspec's message as a line for a person, with the line in the file and a suggestion."""
    at = _AT.search(message)
    path: list[str | int] = []
    for part in re.findall(r"\.([A-Za-z_]\w*)|\[(\d+)\]|\[\.\.\.\]", at[1] if at else ""):
        path.append(int(part[1]) if part[1] else part[0])
    text = message[: at.start()] if at else message
    if unknown := _UNKNOWN.match(text):
        key = unknown[1]
        tables = {"models": ModelSpec, "upstreams": UpstreamSpec, "sampling": SamplingDefaults, "router": RouterSpec}
        known = tables.get(next((part for part in reversed(path) if isinstance(part, str)), ""), Config)
        near = difflib.get_close_matches(key, known.__struct_fields__, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"{file}:{_line_of(node, [*path, key])}: unknown key {key!r}{hint}"
    if missing := _MISSING.match(text):
        return f"{file}:{_line_of(node, path)}: the key {missing[1]!r} is missing."
    where = f"{file}:{_line_of(node, path)}: {_named(path)}: "
    if enum := _ENUM.match(text):
        near = difflib.get_close_matches(enum[1], _CHOICES.get(str(path[-1]), []), 1)
        choices = ", ".join(_CHOICES.get(str(path[-1]), []))
        return f"{where}{enum[1]!r} is not one of {choices}" + (f"; did you mean {near[0]!r}?" if near else ".")
    return f"{where}{_TYPES.sub(_in_words, text[0].lower() + text[1:])}."


def _in_words(types: re.Match[str]) -> str:
    return " or ".join(_WORDS.get(each, each) for each in types[1].split(" | "))


def _named(path: list[str | int]) -> str:
    """What an error is about: a key, an entry of a list, or the file."""
    entry = f"[{path[-1]}]" if path and isinstance(path[-1], int) else ""
    keys = [part for part in path if isinstance(part, str)]
    return f"{keys[-1]}{entry}" if keys else "the file"


def _line_of(node: yaml.Node, path: list[str | int]) -> int:
    """The 1-based line of the value at ``path``, or of the nearest thing above it that is in the file."""
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if key.value in (part, zlai_config.names_of(part))]
            if not keys:
                return line
            line = keys[0].start_mark.line + 1
            node = next(value for key, value in node.value if key is keys[0])
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
