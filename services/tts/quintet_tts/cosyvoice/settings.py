"""Reads ``cosyvoice.yaml`` without running anything: its tags name classes, and become data.

hyperpyyaml, for which the file is written, imports and calls whatever ``!new:`` and ``!apply:`` name, so that a model
folder can run any code. Here a tag is a word in a tree, and ``!ref <name>`` is looked up when it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from quintet_common.worker.host import LoadError

CONFIG = "cosyvoice.yaml"
NEWER = ("cosyvoice2.yaml", "cosyvoice3.yaml")
"""Of versions that are not supported."""


def recognised(folder: Path) -> bool:
    """Whether the folder holds a CosyVoice of any version."""
    return any((folder / name).is_file() for name in (CONFIG, *NEWER))


def check_version(folder: Path) -> None:
    """Raises LoadError for CosyVoice2 and 3, and for a folder that is none, with what is supported instead."""
    newer = [name for name in NEWER if (folder / name).is_file()]
    if newer or not (folder / CONFIG).is_file():
        number = newer[0].removeprefix("cosyvoice").removesuffix(".yaml") if newer else ""
        found = f"is CosyVoice{number}" if newer else f"has no {CONFIG}"
        raise LoadError(
            f"{folder} {found}. CosyVoice 1 is supported (CosyVoice-300M, -300M-SFT and -300M-Instruct, at 50 tokens a "
            "second); CosyVoice2 and CosyVoice3, whose language model is a Qwen2 and whose flow is another, are not."
        )


@dataclass(frozen=True)
class Tagged:
    """A value with a tag: ``name`` is what ``!new:``, ``!name:`` or ``!apply:`` names."""

    name: str
    value: Any


@dataclass(frozen=True)
class Reference:
    """``!ref <name>``: the value of a key at the top of the file."""

    name: str


class _Loader(yaml.SafeLoader):
    pass


def _plain(loader: _Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return loader.construct_scalar(node)


def _tagged(loader: _Loader, name: str, node: yaml.Node) -> Tagged:
    return Tagged(name, _plain(loader, node))


def _reference(loader: _Loader, node: yaml.Node) -> Reference:
    return Reference(str(_plain(loader, node)).strip().removeprefix("<").removesuffix(">"))


for _tag in ("!new:", "!name:", "!apply:", "!module:"):
    _Loader.add_multi_constructor(_tag, _tagged)
_Loader.add_constructor("!ref", _reference)


class Section:
    """One mapping of the file, read key by key. What is missing or of the wrong kind is a LoadError that says where."""

    def __init__(self, file: str, place: str, data: dict[str, Any], top: dict[str, Any]) -> None:
        self._file = file
        self._place = place
        self._data = data
        self._top = top

    def section(self, key: str, kind: str | None = None) -> Section:
        """The mapping under ``key``, which is tagged with the class ``kind`` if one is given."""
        value = self._get(key)
        name = value.name.rsplit(".", 1)[-1] if isinstance(value, Tagged) else None
        if kind is not None and name != kind:
            raise self.error(key, f"is {name or 'no class'}; this version loads {kind} there")
        inner = value.value if isinstance(value, Tagged) else value
        if not isinstance(inner, dict):
            raise self.error(key, "is not a mapping")
        return Section(self._file, self._where(key), inner, self._top)

    def has(self, key: str) -> bool:
        return key in self._data

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, f"is {value!r}, not a whole number above 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        try:
            return float(value)  # YAML 1.1 takes 1e-06 for a word
        except (TypeError, ValueError):
            raise self.error(key, f"is {value!r}, not a number") from None

    def integers(self, key: str) -> list[int]:
        value = self._get(key)
        if not _are_integers(value):
            raise self.error(key, "is not a list of whole numbers")
        return list(value)

    def integer_lists(self, key: str) -> list[list[int]]:
        value = self._get(key)
        if not isinstance(value, list) or not all(_are_integers(each) for each in value):
            raise self.error(key, "is not a list of lists of whole numbers")
        return [list(each) for each in value]

    def require(self, key: str, supported: Sequence[Any]) -> None:
        """An option that may be left out; of its values this version knows only ``supported``."""
        if self.has(key) and self._get(key) not in supported:
            names = " or ".join(repr(value) for value in supported)
            raise self.error(key, f"is {self._get(key)!r}; this version supports only {names}")

    def error(self, key: str, text: str) -> LoadError:
        return LoadError(f"{self._file}: {self._where(key)} {text}.")

    def _where(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def _get(self, key: str, default: Any = None) -> Any:
        value = self._data.get(key, default)
        for _ in range(10):
            if not isinstance(value, Reference):
                break
            if value.name not in self._top:
                raise self.error(key, f"refers to {value.name!r}, which is not in the file")
            value = self._top[value.name]
        if value is None:
            raise self.error(key, "is missing")
        return value


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)


def read(file: Path) -> Section:
    """The file as a Section. Raises LoadError when it is not there or is no YAML mapping."""
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{file}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise LoadError(f"{file}: not valid YAML: {error}") from None
    except RecursionError:
        raise LoadError(f"{file}: nested too deeply.") from None
    if not isinstance(data, dict):
        raise LoadError(f"{file}: expected a mapping.")
    return Section(str(file), "", data, data)
