"""Models that vLLM has, but would read with code from their folder: what it gets instead, so that none is run.

GLM-4 in its first layout gets the tokenizer that our own engine uses; the template in it takes conversations in
OpenAI's form. MiniCPM-V-2_6 gets a folder with links to its files, and beside them our code for its configuration and
its pictures. Both are made in the cache when they are needed first.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError

from quintet_chat.backends import templates
from quintet_chat.backends.embedded import cache_root

_LAYOUT = 1
"""Raised whenever something else than before is written."""

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json")
_OWN_CODE = Path(__file__).with_name("minicpmv")
_AUTO = {
    "config.json": {"AutoConfig": "configuration_minicpmv.MiniCPMVConfig"},
    "preprocessor_config.json": {"AutoImageProcessor": "image_processing_minicpmv.MiniCPMVImageProcessor"},
}
"""Where these files name the code that belongs to them."""

_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_DECIDED = frozenset({"url", "tokenizer", "trust_remote_code"})
"""With one of these ``engine_args``, the model is taken as it is."""


class Prepared(NamedTuple):
    """What vLLM is given for a model: a folder or hub id, and flags."""

    path: str
    tokenizer: str
    flags: dict[str, Any]


def prepare(spec: ModelSpec, config: dict[str, Any]) -> Prepared:
    """For the model with this config.json. Raises LoadError."""
    kind = config.get("model_type")
    if not _DECIDED.isdisjoint(spec.engine_args):
        return Prepared(spec.path, spec.path, {})
    if kind == "chatglm":
        made = str(_chatglm_tokenizer(spec))
        # The model with pictures and the one without have the same name.
        flags = {"hf_overrides": {"architectures": ["GLM4VForCausalLM"]}} if "vision_config" in config else {}
        return Prepared(spec.path, made, {"tokenizer": made, **flags})
    if kind == "minicpmv" and config.get("version") == 2.6:
        made = str(_with_own_code(spec))
        return Prepared(made, made, {"trust_remote_code": True})
    return Prepared(spec.path, spec.path, {})


def _chatglm_tokenizer(spec: ModelSpec) -> Path:
    files = [file for name in _TOKENIZER_FILES if (file := _file(spec, name)) is not None]
    folder = files[0].parent if files else Path(spec.path)
    return _made("chatglm-tokenizer", [file.read_bytes() for file in files], partial(_write_tokenizer, spec, folder))


def _write_tokenizer(spec: ModelSpec, folder: Path, target: Path) -> None:
    # Large, and needed once for a model.
    from quintet_chat.backends.chatglm_tokenizer import load_tokenizer

    made = load_tokenizer(spec.id, folder)
    made.chat_template = templates.in_openai_form(made.chat_template)
    made.save_pretrained(target)


def _with_own_code(spec: ModelSpec) -> Path:
    folder = Path(spec.path)
    if not folder.is_dir():
        folder = Path(_fetched(spec, partial(snapshot_download, spec.path, allow_patterns=_WANTED)))
    own = [file.read_bytes() for file in sorted(_OWN_CODE.glob("*.py"))]
    described = [file.read_bytes() for file in sorted(folder.glob("*.json"))]
    return _made("minicpmv", [str(folder.resolve()).encode(), *own, *described], partial(_write_folder, folder))


def _write_folder(folder: Path, target: Path) -> None:
    target.mkdir()
    for file in folder.resolve().iterdir():
        if any(file.match(pattern) for pattern in _WANTED):
            Path(target, file.name).symlink_to(file)
    for file in _OWN_CODE.glob("*_minicpmv.py"):
        shutil.copy(file, target)
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        path = target / name
        content = json.loads(path.read_text()) if path.exists() else {}
        content.pop("auto_map", None)
        content |= {"auto_map": _AUTO[name]} if name in _AUTO else {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.unlink(missing_ok=True)
        path.write_text(json.dumps(content))


def _made(name: str, contents: list[bytes], write: Callable[[Path], None]) -> Path:
    """The folder in the cache that ``write`` makes out of ``contents``, made now if it is not there."""
    key = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
    target = cache_root() / f"{name}-{key[:16]}-v{_LAYOUT}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        write(Path(scratch, "made"))
        try:
            Path(scratch, "made").rename(target)
        except OSError:
            if not target.is_dir():  # else another worker was quicker
                raise
    return target


def _file(spec: ModelSpec, name: str) -> Path | None:
    if Path(spec.path).is_dir():
        file = Path(spec.path, name)
        return file if file.is_file() else None
    try:
        return Path(_fetched(spec, partial(hf_hub_download, spec.path, name)))
    except EntryNotFoundError:
        return None


def _fetched(spec: ModelSpec, fetch: Callable[[], Any]) -> str:
    try:
        return str(fetch())
    except EntryNotFoundError:
        raise
    except Exception as error:
        raise LoadError(f"{spec.id}: its files cannot be fetched: {error}") from None
