"""A YAML file as its data and its lines, so that a mistake in the data can be told with its place."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from quintet_common.characters import is_text

Place = Sequence[str | int]
"""Keys and indices that lead from the top of the data to a value."""

_IN_BRACKETS = ("while parsing a flow mapping", "while parsing a flow sequence")
_CLOSING = {"{": "}", "[": "]"}
MAX_BYTES = 1 << 20
"""Of a file, as of a ConfigMap of Kubernetes. Ten times as many take minutes and gigabytes to be parsed."""
_MOST = 1 << 63
_TEXT, _NUMBER = "tag:yaml.org,2002:str", "tag:yaml.org,2002:int"
_WIDE_COLON = re.compile(r"[\s\-{,]*([\w.-]+)\s*：")


class ConfigError(Exception):
    """models.yml cannot be used. The text is a line for each mistake, for a person: where, what, and what to do."""


def read_text(file: Path) -> str:
    """Raises ConfigError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{file}: cannot be read: it is larger than {MAX_BYTES >> 20} MiB.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"{file}: cannot be read: it is UTF-16 text; save it as UTF-8.") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: cannot be read: not UTF-8 text; save it as UTF-8.") from None


class _Loader(yaml.SafeLoader):
    """Has a line for what YAML's own leaves to Python to complain of: the 45th of a month, half a character."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and ("\0" in node.value or not is_text(node.value)):
            raise ConstructorError(None, None, "half a character, or one of the number 0", node.start_mark)
        try:
            found = super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{node.value!r} is no {kind}", node.start_mark) from None
        if isinstance(found, int) and not -_MOST <= found < _MOST:  # no message to a model's process can carry it
            raise ConstructorError(None, None, "a number of more than 64 bits", node.start_mark)
        return found


class Source:
    """``text`` of ``file``, parsed.

    Raises ConfigError for what is no YAML, and for a key that is twice in one mapping.
    """

    def __init__(self, text: str, file: Path) -> None:
        self.file = file
        self.name_of: Callable[[str | int], str | int] = lambda part: part
        """The key that this file writes for one of ours."""
        self._text = text
        try:
            self._node, self.data = yaml.compose(text, _Loader), yaml.load(text, _Loader)
        except RecursionError:
            self.refuse([f"{file}: not usable: it is nested too deeply."])
        except yaml.MarkedYAMLError as error:
            line, problem = _first_cause(error, text)
            self.refuse([f"{file}:{line}: not valid YAML: {problem}."])
        except yaml.YAMLError as error:
            self.refuse([f"{file}: not valid YAML: {_first_line(error)}."])
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
        return self._find(place)[1]

    def key_without_text(self, place: Place) -> tuple[int, str] | None:
        """Of the mapping at ``place``, a key that YAML takes for something else than text, as it is written, and its
        1-based line. Numbers come last: some mappings may have them."""
        node, _ = self._find(place)
        keys = [key for key, _ in node.value if key.tag != _TEXT] if isinstance(node, yaml.MappingNode) else []
        if not keys:
            return None
        key = min(keys, key=lambda each: each.tag == _NUMBER)
        mark = key.start_mark
        return mark.line + 1, self._text[mark.index : key.end_mark.index]

    def _find(self, place: Place) -> tuple[Any, int]:
        """What is at ``place``, None where nothing is, and its line as ``line`` has it."""
        node: Any = self._node
        line = 1 if node is None else node.start_mark.line + 1
        for part in place:
            if isinstance(node, yaml.MappingNode):
                pairs = [pair for pair in node.value if pair[0].value in (str(part), self.name_of(part))]
                if not pairs:
                    return None, line
                key, node = pairs[0]
                line = key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                return None, line
        return node, line

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


def _first_cause(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """The 1-based line in which a mistake begins, which may be long before YAML notices it, and what it is."""
    noticed, begun = error.problem_mark, error.context_mark
    assert noticed is not None
    problem, context, line = str(error.problem), str(error.context), noticed.line + 1
    if (quote := _torn_quote(text, noticed.index)) is not None:
        return quote[0], f"the quote that begins here ends on line {quote[1]} only; one is missing"
    if begun is not None and "quoted scalar" in context and "end of stream" in problem:
        return begun.line + 1, "the quote that begins here has no end"
    if begun is not None and begun.line + 1 < line and context.startswith(_IN_BRACKETS):
        bracket = text[begun.index]
        return begun.line + 1, f"the {bracket!r} here has no {_CLOSING[bracket]!r}, as is noticed on line {line}"
    if begun is not None and "simple key" in context:
        return begun.line + 1, "there is no ': ' behind the key"
    if "another document" in problem:
        return line, "a second document begins here, and there can be only one"
    if "expected <block end>" in problem:
        return line, "this line begins in another column than those that it belongs to"
    if repr("\t") in problem:
        return line, "a tab where only spaces may be"
    if "mapping values are not allowed" in problem:
        return line, "a ': ' where none may be: in a text without quotes, or on a line that begins too far right"
    return line, problem


def _torn_quote(text: str, noticed: int) -> tuple[int, int] | None:
    """First and last line of a quoted text of several lines, behind which on its last line something is wrong."""
    last = None
    try:
        for token in yaml.scan(text):
            if token.start_mark.index > noticed:
                break
            if isinstance(token, yaml.ScalarToken) and token.style in ("'", '"') and not token.plain:
                last = token
    except yaml.YAMLError:
        pass
    if last is None or not last.start_mark.line < last.end_mark.line:
        return None
    same_line = "\n" not in text[last.end_mark.index : noticed]
    return (last.start_mark.line + 1, last.end_mark.line + 1) if same_line else None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
