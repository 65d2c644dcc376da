"""Downloads models from a hub: whole, checked, and without what no loader here reads.

    python -m quintet_common.pull ORG/NAME[@REVISION] …      (or: quintet pull …)
    python -m quintet_common.pull --models models.yml

The hub is the one of ``HF_ENDPOINT``, the token that of ``HF_TOKEN``. Needs the package huggingface_hub, which services
that load models have.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from quintet_common import hub
from quintet_common.footprint import in_words
from quintet_common.models_yml import ConfigError, load_config

_NEVER = (
    "*.onnx", "*.onnx_data", "onnx/*", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.mlmodel", "openvino/*", "*.gguf",
    "*.md", ".gitattributes", "*.png", "*.jpg", "*.gif", "*.mp4", "original/*", "consolidated*", "*.py",
)  # fmt: skip
_PICKLED = ("pytorch_model*.bin", "diffusion_pytorch_model*.bin", "*.ckpt")
"""Left out where the same folder has safetensors."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

_STOPPED = b"\nStopped. Files that are complete are kept; the same command fetches the rest.\n"
_HALF = ".incomplete"
"""How the hub's client names a file that it has not all of."""

_BLOCK = 1 << 20
_ID = re.compile(r"[^/\s]+/[^/\s]+")


class PullError(Exception):
    """Why a model could not be had. The text is for a person."""


@dataclass(frozen=True)
class Wanted:
    """A model on the hub; ``revision`` is a branch, a tag or a commit."""

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Wanted:
        name, _, revision = text.partition("@")
        return cls(name, revision or None)


def pull(wanted: Wanted, into: Path | None) -> Path:
    """Download ``wanted`` and check it. Raises PullError.

    Returns the folder it is in: ``into/ORG/NAME``, or one in the hub's cache. What is there already is only checked.
    """
    if not _ID.fullmatch(wanted.id):
        raise PullError(f"{wanted.id!r} is not ORG/NAME, like Qwen/Qwen2-7B-Instruct.")
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise PullError("The package huggingface_hub is not installed.") from None
    try:
        with hub.explained(wanted.id, wanted.revision):
            info = HfApi().model_info(wanted.id, revision=wanted.revision, files_metadata=True)
            files = {each.rfilename: each for each in info.siblings or []}
            names = needed(files)
            if not names:
                raise PullError(f"{wanted.id} has no files that could be loaded here.")
            size = sum(files[name].size or 0 for name in names)
            sys.stderr.write(f"{wanted.id} at {info.sha}: {len(names)} files, {in_words(size)}\n")
            folder = Path(
                snapshot_download(
                    wanted.id,
                    revision=wanted.revision or "main",
                    allow_patterns=[_literal(name) for name in names],
                    local_dir=None if into is None else into / wanted.id,
                )
            )
    except (OSError, hub.NotOnHub, httpx2.HTTPError) as error:  # the disk too, and what else the hub answered
        raise PullError(f"{wanted.id}: {str(error).strip().splitlines()[-1]}") from None
    for name in names:
        _check(wanted, folder / name, files[name])
    return folder


def needed(names: Iterable[str]) -> list[str]:
    """Which of a repository's files a loader here may read."""
    kept = [name for name in names if not any(fnmatch.fnmatch(name, glob) for glob in _NEVER)]
    safe = {str(Path(name).parent) for name in kept if name.endswith(".safetensors")}
    return sorted(
        name
        for name in kept
        if str(Path(name).parent) not in safe or not any(fnmatch.fnmatch(name, glob) for glob in _PICKLED)
    )


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _check(wanted: Wanted, file: Path, told: Any) -> None:
    """Compare a file with the checksum that the hub gives for it. Raises PullError, and removes what is damaged."""
    if told.lfs is not None:
        expected, digest = told.lfs.sha256, hashlib.sha256()
    elif told.blob_id is not None:  # git's own checksum of a blob
        expected, digest = told.blob_id, hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected:
        file.resolve().unlink()
        file.unlink(missing_ok=True)
        raise PullError(f"{wanted.id}: {file.name} was damaged on its way and is removed. Pull it again.")


def from_config(file: Path) -> list[Wanted]:
    """The models of a models.yml that are on the hub. Raises ConfigError."""
    paths = (spec.path for spec in load_config(file).models if spec.embedded is None)
    return [Wanted(path) for path in dict.fromkeys(paths) if not path.startswith(("/", "~", "."))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        metavar="ORG/NAME[@REVISION]",
        help="what to download; REVISION is a branch, a tag or a commit",
    )
    parser.add_argument("--models", dest="config", metavar="FILE", type=Path, help="also all that a models.yml names")
    parser.add_argument(
        "--into", metavar="FOLDER", type=Path, help="where it goes (default: the cache where services look)"
    )


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """Ctrl-C ends the process: the hub's client would first fetch the files that it has begun, which may take hours."""

    def end(*_: object) -> None:
        _drop_halves()
        os.write(
            sys.stderr.fileno(), b"\nStopped. Files that are complete are kept; the same command fetches the rest.\n"
        )
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _drop_halves() -> None:
    """Remove the files that are being written: the client never goes on with them."""
    with suppress(OSError):  # no /proc: another system than Linux
        for each in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if (file := each.readlink()).name.endswith(_HALF):
                    file.unlink()


def run(options: argparse.Namespace) -> int:
    """Print the folder of each model as it is complete; 1 when one cannot be had."""
    with _ending_at_once():
        return _pull_all(options)


def _pull_all(options: argparse.Namespace) -> int:
    wanted = [Wanted.parse(text) for text in options.models]
    try:
        wanted += from_config(options.config) if options.config else []
        if not wanted and not options.config:
            raise PullError("Name a model, or give --models FILE.")
        if not wanted:
            sys.stderr.write(f"{options.config} names no model of a hub: there is nothing to pull.\n")
        for each in wanted:
            sys.stdout.write(f"{pull(each, options.into)}\n")
            sys.stdout.flush()
    except (PullError, ConfigError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="quintet pull", description="Download models, and check them.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
