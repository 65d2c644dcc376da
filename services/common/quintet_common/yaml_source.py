"""A YAML file as its data and its lines, so that a mistake in the data can be told with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from quintet_common.characters import is_text

Place = Sequence[str | int]
"""Keys and indices that lead from the top of the data to a value."""

_WIDE_COLON = re.compile(r"[\s\-{,]*([\w.-]+)\s*：")


class ConfigError(Exception):
    """models.yml cannot be used. The text is a line for each mistake, for a person: where, what, and what to do."""


def read_text(file: Path) -> str:
    """Raises ConfigError."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{file}: cannot be read: {reason}.") from None


class _Loader(yaml.SafeLoader):
    """Has a line for what YAML's own leaves to Python to complain of: the 45th of a month, half a character."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and ("\0" in node.value or not is_text(node.value)):
            raise ConstructorError(None, None, "half a character, or one of the number 0", node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{node.value!r} is no {kind}", node.start_mark) from None


class Source:
    """``text`` of ``file``, parsed. ``rename`` is the key that the file may write for one of ours.

    Raises ConfigError for what is no YAML, and for a key that is twice in one mapping.
    """

    def __init__(self, text: str, file: Path, rename: Callable[[str | int], str | int] = lambda part: part) -> None:
        self.file = file
        self._text = text
        self._rename = rename
        try:
            self._node, self.data = yaml.compose(text, _Loader), yaml.load(text, _Loader)
        except RecursionError:
            self.refuse([f"{file}: not usable: it is nested too deeply."])
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{file}:{mark.line + 1}" if mark else str(file)
            problem = getattr(error, "problem", None) or _first_line(error)
            if repr("\t") in problem:
                problem = "a tab where only spaces may be"
            self.refuse([f"{where}: not valid YAML: {problem}."])
        self._check_keys()

    def refuse(self, lines: Sequence[str]) -> None:
        """Raise ConfigError with ``lines``, behind one for a colon that is none, which explains the others."""
        for number, line in enumerate(self._text.splitlines(), 1):
            if wide := _WIDE_COLON.match(line):
                said = f"the colon after {wide[1]!r} is a full-width one (：), which is none in YAML; write ': '."
                raise ConfigError("\n".join([f"{self.file}:{number}: {said}", *lines]))
        raise ConfigError("\n".join(lines))

    def line(self, place: Place) -> int:
        """The 1-based line of the value at ``place``, or of the nearest thing above it that is in the file."""
        node: Any = self._node
        line = 1 if node is None else node.start_mark.line + 1
        for part in place:
            if isinstance(node, yaml.MappingNode):
                pairs = [pair for pair in node.value if pair[0].value in (str(part), self._rename(part))]
                if not pairs:
                    return line
                key, node = pairs[0]
                line = key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                return line
        return line

    def _check_keys(self) -> None:
        """No key twice in one mapping: YAML's loader would drop the first without a word."""
        seen: set[yaml.Node | None] = set()
        todo: list[yaml.Node | None] = [self._node]
        while todo:
            node = todo.pop()
            if node in seen:  # aliases make a graph of the tree
                continue
            seen.add(node)
            if isinstance(node, yaml.SequenceNode):
                todo += node.value
            elif isinstance(node, yaml.MappingNode):
                todo += [value for _, value in node.value]
                self._check_mapping(node)

    def _check_mapping(self, node: yaml.MappingNode) -> None:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            name = key.value if isinstance(key, yaml.ScalarNode) else key
            if isinstance(key, yaml.ScalarNode) and name in lines:
                self.refuse([f"{self.file}:{line}: the key {name!r} is on line {lines[name]} already."])
            lines[name] = line


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
