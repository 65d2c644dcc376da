"""Where a model's files are in its folder. Only its top and the folders that it names are looked at: the folder may be
anything, somebody's home for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quintet_common import headers

PIPELINE = "model_index.json"
"""What makes a folder a pipeline of diffusers."""

SENTENCES = "modules.json"
"""What sentence-transformers writes beside a model."""


def text_of(file: Path) -> str:
    """What is in a regular file. Raises OSError, also for a pipe or a device, which might never end."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is no file")
    return file.read_text()


def places(folder: Path) -> list[Path]:
    """``folder``, and those in it that its list of parts names, if it has one."""
    parts = (folder / name for name in (*_of_pipeline(folder), *_of_sentences(folder)))
    return [
        folder,
        *dict.fromkeys(part for part in parts if part.parent == folder and part.name != ".." and part.is_dir()),
    ]


def files(folder: Path, pattern: str) -> Iterator[Path]:
    """The regular files of that name in the ``places`` of ``folder``."""
    return (file for place in places(folder) for file in place.glob(pattern) if file.is_file())


def _of_pipeline(folder: Path) -> list[str]:
    index = _json(folder / PIPELINE)
    return [name for name, value in index.items() if isinstance(value, list)] if isinstance(index, dict) else []


def _of_sentences(folder: Path) -> list[str]:
    modules = _json(folder / SENTENCES)
    paths = [each.get("path") for each in modules if isinstance(each, dict)] if isinstance(modules, list) else []
    return [path for path in paths if isinstance(path, str)]


def _json(file: Path) -> Any:
    try:
        return json.loads(text_of(file))
    except (OSError, *headers.NO_JSON):
        return None
