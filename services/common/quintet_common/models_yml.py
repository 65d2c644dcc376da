"""models.yml: what is served. One file for a laptop, compose and Helm; ZLAI's ``models_config.yml`` is read as it is.

Every mistake is one line, ``FILE:LINE: what is wrong``, and an unknown key gets a "did you mean". All are told at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from quintet_common import values, wording, zlai_config
from quintet_common.entries import (
    EMBEDDED,
    AutoTools,
    Balance,
    Config,
    Dtype,
    Kind,
    ModelSpec,
    RouterSpec,
    SamplingDefaults,
    UpstreamSpec,
    idle_seconds,
)
from quintet_common.yaml_source import ConfigError, Place, Source, read_text

__all__ = [
    "EMBEDDED",
    "Balance",
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


def load_config(path: str | Path) -> Config:
    """Read, check and return models.yml; relative model paths are taken from its folder.

    Raises ConfigError with a line for each mistake that says where and what.
    """
    file = Path(path)
    return parse_config(read_text(file), file)


def parse_config(text: str, file: Path) -> Config:
    source = _source(text, file)
    data = source.data
    if data is None:
        source.refuse([f"{file}: there is nothing in it; it begins with 'models:'."])
    if not isinstance(data, dict):
        source.refuse([f"{file}:1: expected a mapping with the key 'models'."])
    reading = _Reading(source)
    if zlai_config.KEY in data:
        if "models" in data:
            reading.complain_of_two_lists()
        data, wrong = zlai_config.translate(data)
        reading.skip(wrong)
    config = reading.config(data)
    reading.end()
    return config


def _source(text: str, file: Path) -> Source:
    """Raises ConfigError."""
    source = Source(text, file)
    if isinstance(source.data, dict) and zlai_config.KEY in source.data:
        source.name_of = zlai_config.names_of
    return source


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
    return _source(read_text(file), file)


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
_STAND_INS = {"id": "?", "kind": "chat", "path": "?", "url": "http://?"}
"""Of what entries need, for looking at the rest of one where it is wrong or missing."""
_LIKE = {
    "memory": values.MEMORY,
    "aliases": "[one, two]",
    "sampling": "{temperature: 0.7}",
    "engine_args": "{quantization: int8}",
    "keep": "10m idle",
}
"""How that is written which is often written otherwise."""
_LIKE_OF_UPSTREAMS = {"aliases": "{gpt-4o: big-model}"}
_FOLDERS = ("loras", "voices")
"""Settings of engines that are paths."""

StructT = TypeVar("StructT", bound=msgspec.Struct)


class _Reading:
    """What is made of a file, and all that is wrong with it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._folder = source.file.parent
        self._faults: list[tuple[int, str]] = []
        self._skipped: set[int] = set()

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
        for key, mistake in (("redis", values.redis_mistake), ("traces", values.traces_mistake)):
            if (url := getattr(router, key)) and (text := mistake(url)):
                self._fault(["router", key], f"{key}: {text}")
        for index, origin in enumerate(router.cors or ()):
            if text := values.origin_mistake(origin):
                self._fault(["router", "cors", index], f"cors: {text}")
        if router.keys is not None:
            if text := values.path_mistake(self._folder, router.keys):
                self._fault(["router", "keys"], f"keys: {text}")
            else:
                router = msgspec.structs.replace(router, keys=_resolved(self._folder, router.keys))
        return Config(models=models, upstreams=upstreams, router=router)

    def upstreams(self, entries: list[Any], at: Place) -> list[UpstreamSpec]:
        """Entries of the list that stands at the place ``at``."""
        found = []
        lines: dict[str, int] = {}
        for index, entry in enumerate(entries):
            if (upstream := self._convert(entry, UpstreamSpec, [*at, index], "upstreams")) is None:
                continue
            if text := values.url_mistake(upstream.url):
                self._fault([*at, index, "url"], f"url: {text}")
            elif (before := lines.get(upstream.http_url)) is not None:
                self._fault([*at, index, "url"], f"url: the upstream on line {before} has this address already.")
            lines.setdefault(upstream.http_url, self._source.line([*at, index]))
            if text := values.key_mistake(upstream.key or ""):
                self._fault([*at, index, "key"], f"key: {text}")
            found.append(upstream)
        return found

    def skip(self, wrong: dict[int, msgspec.ValidationError]) -> None:
        """Keep what is wrong with entries of ``models``, by their index, and look no further at them."""
        for index, error in wrong.items():
            self.complain(error, ["models", index], "models")
        self._skipped.update(wrong)

    def complain_of_two_lists(self) -> None:
        self._fault([], f"models: {zlai_config.KEY} is in this file too; all models go under one of the two.")

    def complain(self, error: msgspec.ValidationError, at: Place, table: str = "") -> None:
        """Keep a mistake in what stands at ``at``, an entry of the list ``table`` if it is that of one."""
        complaint = wording.read(str(error))
        path = [*at, *complaint.path]
        if complaint.of_key and (key := self._source.key_without_text(path)) is not None:
            return self._faults.append((key[0], f"the key {key[1]} is not text for YAML; put it in quotes."))
        keys = [table, *(part for part in path if isinstance(part, str))]
        if complaint.unknown is not None:
            hint = wording.meant(complaint.unknown, self._known(keys[-1]))
            return self._fault([*path, complaint.unknown], f"unknown key {complaint.unknown!r}{hint}")
        if complaint.missing is not None:
            return self._fault(path, f"the key {self._source.name_of(complaint.missing)!r} is missing.")
        if (name := _key_of(complaint, table)) is not None:
            text = complaint.text.removeprefix(name)
            return self._fault([*path, name], f"{self._source.name_of(name)}{text}.")
        entry = f"[{path[-1]}]" if path and isinstance(path[-1], int) else ""
        name = f"{self._source.name_of(keys[-1])}{entry}" if keys[-1] else "the file"
        if complaint.choice is None:
            known = {**_LIKE, **_LIKE_OF_UPSTREAMS} if table == "upstreams" else _LIKE
            like = f"; write it like {known[keys[-1]]}" if keys[-1] in known and not entry else ""
            return self._fault(path, f"{name}: {complaint.text}{like}.")
        choices = _CHOICES.get(keys[-1], [])
        meant = values.kind_meant if keys[-1] in ("kind", "model_type") else wording.meant
        hint = meant(complaint.choice, choices)
        return self._fault(path, f"{name}: {complaint.choice!r} is not one of {', '.join(choices)}{hint}")

    def _known(self, table: str) -> list[str]:
        """The keys of a table, as this file writes them."""
        names = list(_TABLES.get(table, Config).__struct_fields__)
        if table not in _TABLES:
            return [*names, zlai_config.KEY]
        if table != "models" or self._source.name_of(table) == table:
            return names
        return [*(str(self._source.name_of(name)) for name in names), *zlai_config.DROPPED]

    def _fault(self, place: Place, text: str) -> None:
        self._faults.append((self._source.line(place), text))

    def _convert(self, data: Any, kind: type[StructT], at: Place, table: str = "") -> StructT | None:
        """What ``data`` is less the keys that are wrong; None where it is nothing without them."""
        misspelt = lacking = False
        while True:
            try:
                found = msgspec.convert(data, kind)
            except msgspec.ValidationError as error:
                complaint = wording.read(str(error))
                if complaint.missing is None or not misspelt:  # else it is most likely there, under a wrong name
                    self.complain(error, at, table)
            else:
                return None if lacking else found
            misspelt = misspelt or complaint.unknown is not None
            keys = _keys_of(complaint, table)
            needed = complaint.unknown is None and len(keys) == 1 and keys[0] in _STAND_INS
            lacking = lacking or needed
            if not isinstance(data, dict) or not (needed or _is_in(data, keys)):
                return None
            data = {**data, keys[0]: _STAND_INS[keys[0]]} if needed else _without(data, keys)

    def _models(self, entries: list[Any]) -> list[ModelSpec]:
        found: list[ModelSpec] = []
        seen: dict[str, int] = {}
        defaults: dict[str, int] = {}
        for index, entry in enumerate(entries):
            if index in self._skipped:
                continue
            if isinstance(entry, dict) and entry.get("auto_tools") is False:
                entry = {**entry, "auto_tools": "off"}  # which YAML reads as false
            if (spec := self._convert(entry, ModelSpec, ["models", index], "models")) is None:
                continue
            if (wrong := _unusable(spec, self._folder)) is not None:
                self._wrong_value(index, *wrong)
                continue
            spec = _absolute(spec, self._folder)
            self._check_names(spec, index, seen, defaults)
            for place, text in values.mistakes_in(spec):
                self._wrong_value(index, place, text)
            found.append(spec)
        return found

    def _wrong_value(self, index: int, keys: list[str], text: str) -> None:
        names = [str(self._source.name_of(key)) for key in keys]
        self._fault(["models", index, *keys], f"{': '.join(names)}: {text}")

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


def _key_of(complaint: wording.Complaint, table: str) -> str | None:
    """The key that one of ModelSpec's own checks is about, which their texts begin with."""
    key = complaint.text.partition(" ")[0]
    return key if table == "models" and not complaint.path and key in ModelSpec.__struct_fields__ else None


def _keys_of(complaint: wording.Complaint, table: str) -> list[str]:
    """The keys that lead to what a complaint is about, or to the list that it is in."""
    keys: list[str] = []
    for part in complaint.path:
        if not isinstance(part, str):
            return keys
        keys.append(part)
    last = complaint.unknown or complaint.missing or _key_of(complaint, table)
    return [*keys, last] if last is not None else keys


def _is_in(data: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return bool(keys)


def _without(data: dict[Any, Any], keys: list[str]) -> dict[Any, Any]:
    """``data`` less what the keys lead to."""
    first, *others = keys
    if others:
        return {**data, first: _without(data[first], others)}
    return {key: value for key, value in data.items() if key != first}


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
