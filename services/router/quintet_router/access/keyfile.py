"""The file of API keys: who may use which models, and how much. It holds hashes; nobody can read a key out of it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from quintet_common import wording
from quintet_common.yaml_source import ConfigError, Source

PREFIX = "sk-quintet-"
_RANDOM_BYTES = 32
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_FORMS = {
    "name": "a name is of letters, digits and . _ @ -, begins with a letter or digit, and has 64 of them at most",
    "sha256": "that is no SHA-256: 64 of the digits 0 to 9 and a to f",
}
_HEADER = "# API keys of the router, as hashes. `quintet keys` writes this file.\n"
_NO_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the parser raises: of the 45th of a month or too many brackets it lets Python complain."""


class KeyFileError(Exception):
    """The file cannot be used. The text is one line for a person."""


class Key(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """One entry. ``sha256`` is that of the whole key, as hexadecimal digits.

    ``models`` are ids, aliases, or patterns of them with ``*`` and ``?``; None is all. ``requests_per_minute`` and
    ``concurrent_requests`` are limits; None is none. ``admin`` opens ``/admin``.
    """

    name: Annotated[str, msgspec.Meta(pattern=_NAME)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    models: list[str] | None = None
    requests_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    concurrent_requests: Annotated[int, msgspec.Meta(ge=1)] | None = None
    admin: bool = False
    created: date | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key]


def digest(secret: bytes) -> bytes:
    """One plain SHA-256 is enough: a key is 256 random bits, so there is no guessing that salt or rounds would slow."""
    return hashlib.sha256(secret).digest()


def make_key(**fields: object) -> Key:
    """A checked entry; None is absent. Raises KeyFileError."""
    try:
        return msgspec.convert({name: value for name, value in fields.items() if value is not None}, Key)
    except msgspec.ValidationError as error:
        raise KeyFileError(_in_words(error)) from None


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def read(path: str | Path) -> list[Key]:
    """The entries of the file, whose names and hashes differ. Raises KeyFileError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise KeyFileError(f"{path}: cannot be read: {reason}.") from None
    except _NO_YAML as error:
        mark = getattr(error, "problem_mark", None)
        raise KeyFileError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML.") from None
    try:
        keys = msgspec.convert(data, _File).keys
    except msgspec.ValidationError as error:
        raise KeyFileError(_with_its_line(error, text, Path(path))) from None
    for counts in (Counter(key.name for key in keys), Counter(key.sha256 for key in keys)):
        if twice := next((value for value, count in counts.items() if count > 1), None):
            raise KeyFileError(f"{path}: {twice} is there twice.")
    return keys


def _with_its_line(error: msgspec.ValidationError, text: str, file: Path) -> str:
    told = wording.read(str(error))
    place = [*told.path, *([told.unknown] if told.unknown is not None else [])]
    try:
        return f"{file}:{Source(text, file).line(place)}: {_in_words(error)}"
    except ConfigError as other:  # a key that is there twice
        return str(other)


def _in_words(error: msgspec.ValidationError) -> str:
    told = wording.read(str(error))
    if told.unknown is not None:
        known = Key.__struct_fields__ if told.path else ("keys",)
        return f"unknown key {told.unknown!r}{wording.meant(told.unknown, known)}"
    if told.missing is not None:
        return f"the key {told.missing!r} is missing."
    key = next((part for part in reversed(told.path) if isinstance(part, str)), "")
    text = _FORMS[key] if key in _FORMS and "regex" in told.text else told.text
    return f"{key}: {text}." if key else f"{text}."


@contextmanager
def changing(path: str | Path) -> Iterator[None]:
    """Wait until nobody else changes a file in the same folder: what is read inside is still true when it is written.

    Nothing where there is no such folder.
    """
    try:
        folder = os.open(Path(path).parent, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write(path: str | Path, keys: Sequence[Key]) -> None:
    """Replace the file in one step. It keeps its mode, and its owner as far as we may give it away; a new one is
    readable by its owner alone. Raises KeyFileError."""
    file = Path(path)
    text = _HEADER + yaml.safe_dump(msgspec.to_builtins(_File(list(keys))), sort_keys=False)
    try:
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # made with mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                _be_like(file, stream.fileno())
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}.") from None


def _be_like(file: Path, handle: int) -> None:
    """Owner and mode of ``file``, if there is one: a container that reads it as a user of its own still can."""
    try:
        before = file.stat()
    except FileNotFoundError:
        return
    with suppress(PermissionError):
        os.fchown(handle, before.st_uid, before.st_gid)
    os.fchmod(handle, stat.S_IMODE(before.st_mode))


def too_open(path: str | Path) -> bool:
    """Whether others than the owner's group can read the file."""
    try:
        return bool(Path(path).stat().st_mode & 0o007)
    except OSError:
        return False
