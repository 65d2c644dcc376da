"""The command that installs what is missing, as it works where this process runs: from the repository, or beside it."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from urllib.parse import unquote, urlsplit

_EXTRA = re.compile(r";\s*extra == ['\"](?P<name>[\w-]+)['\"]")


def command(package: str, extra: str | None = None) -> str:
    """Installs one of our packages, ``quintet-NAME``, with an extra. None of them is on an index: it is installed from
    its folder, or what the extra stands for by name."""
    if (folder := _folder(package)) is not None:
        return f"{_installer()} -e '{_short(folder)}{f'[{extra}]' if extra else ''}'"
    needed = [_EXTRA.sub("", each) for each in _requirements(package) if (of := _EXTRA.search(each)) and of[1] == extra]
    names = needed or [f"{package}[{extra}]" if extra else package]
    return " ".join([_installer(), *(f"'{name.strip()}'" for name in names)])


def _installer() -> str:
    python = Path(sys.executable)
    uv = python.with_name("uv")
    if uv.is_file():
        return f"{_short(uv)} pip install -p {_short(python)}"
    return f"{_short(python)} -m pip install"


def _folder(package: str) -> Path | None:
    """Where the source of ``package`` lies, if it, or what all of ours need, is installed from such a place."""
    for name in (package, "quintet-common"):
        try:
            told = json.loads(distribution(name).read_text("direct_url.json") or "{}")
        except (PackageNotFoundError, ValueError):
            continue
        if told.get("dir_info", {}).get("editable"):
            folder = Path(unquote(urlsplit(told["url"]).path)).with_name(package.removeprefix("quintet-"))
            return folder if folder.is_dir() else None
    return None


def _requirements(package: str) -> list[str]:
    try:
        return requires(package) or []
    except PackageNotFoundError:
        return []


def _short(path: Path) -> str:
    """``path`` as it is typed in the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else os.fspath(path)
