"""GLM-4 in the layout in which it was first published: what vLLM needs so as to run no code from the model's folder.

vLLM has the model, but would make its tokenizer with the code that came with the weights. It gets the tokenizer that
our own engine uses, in a folder in the cache, and the template in it takes conversations in OpenAI's form.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError

from quintet_chat.backends import templates
from quintet_chat.backends.embedded import cache_root

_FILES = ("tokenizer.model", "tokenizer_config.json")
_LAYOUT = 1
"""Raised whenever something else than before is written."""


def flags(spec: ModelSpec, config: dict[str, Any]) -> dict[str, Any]:
    """Flags of vLLM's for the model with this config.json; none for most. Raises LoadError."""
    if config.get("model_type") != "chatglm" or not spec.engine_args.keys().isdisjoint(("url", "tokenizer")):
        return {}
    found: dict[str, Any] = {"tokenizer": str(tokenizer(spec))}
    if "vision_config" in config:  # the text model has the same name
        found["hf_overrides"] = {"architectures": ["GLM4VForCausalLM"]}
    return found


def tokenizer(spec: ModelSpec) -> Path:
    """A folder with the model's tokenizer as transformers knows it, made when it is needed first. Raises LoadError."""
    files = [file for name in _FILES if (file := _file(spec, name)) is not None]
    key = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    target = cache_root() / f"chatglm-tokenizer-{key[:16]}-v{_LAYOUT}"
    if not target.is_dir():
        _write(spec, files[0].parent if files else Path(spec.path), target)
    return target


def _write(spec: ModelSpec, folder: Path, target: Path) -> None:
    # Large, and needed once for a model.
    from quintet_chat.backends.chatglm_tokenizer import load_tokenizer

    made = load_tokenizer(spec.id, folder)
    made.chat_template = templates.in_openai_form(made.chat_template)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made.save_pretrained(Path(scratch, "made"))
        try:
            Path(scratch, "made").rename(target)
        except OSError:
            if not target.is_dir():  # else another worker was quicker
                raise


def _file(spec: ModelSpec, name: str) -> Path | None:
    if Path(spec.path).is_dir():
        file = Path(spec.path, name)
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(spec.path, name))
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise LoadError(f"{spec.id}: {name} cannot be fetched: {error}") from None
