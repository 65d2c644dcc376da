"""What a model's own files say of it, for the work that stays with us. Needs neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from quintet_common import checkpoint
from quintet_common.models_yml import ModelSpec

from quintet_chat.backends import families
from quintet_chat.vllm import originals

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_WRITES_AS = {"minicpmv": "hermes"}
"""Models whose template names no tools, and the family of the language model that is in them."""


def info(spec: ModelSpec, context: int | None) -> dict[str, Any]:
    """For ``/v1/models``; see ``quintet_chat.protocol``. Files that cannot be read are passed over."""
    generation = _json(spec.path, "generation_config.json")
    config = config_of(spec)
    template = _template(originals.prepare(spec, config).tokenizer)
    found: dict[str, Any] = {
        "engine": "vllm",
        "template_tools": families.renders_tools(template),
        "sampling": {name: generation[name] for name in _SAMPLING if generation.get(name) is not None},
    }
    if context is not None:
        found["context"] = context
    if vocabulary := config.get("vocab_size", config.get("padded_vocab_size")):
        found["vocab_size"] = vocabulary
    family = families.tool_family(template) or _WRITES_AS.get(str(config.get("model_type")))
    if family is not None:
        found["tool_family"] = family
    if (style := families.thinking_style(template)) is not None:
        found["thinking"] = style
    if (quantization := checkpoint.method(config)) is not None:
        found["quantization"] = quantization
    return found


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """The model's config.json; empty where there is none yet."""
    return _json(spec.path, "config.json")


def needs_vllm(spec: ModelSpec) -> bool:
    """Whether ``engine: auto`` is vLLM for this model."""
    return checkpoint.on_vllm(spec, config_of(spec))


def _template(path: str) -> str:
    file = _file(path, "chat_template.jinja")
    if file is not None:
        return file.read_text()
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = _json(path, name).get("chat_template")
        if found:
            return found if isinstance(found, str) else json.dumps(found)
    return ""


def _json(path: str, name: str) -> dict[str, Any]:
    file = _file(path, name)
    try:
        found = {} if file is None else json.loads(file.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _file(path: str, name: str) -> Path | None:
    """A file of the model's directory, or of its repository if vLLM has fetched it."""
    if Path(path).is_dir():
        file = Path(path, name)
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(path, name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None
