"""What a model's folder lacks, or that it holds a model of another kind: known before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quintet_common import checkpoint, headers, hub, layout
from quintet_common.entries import ModelSpec
from quintet_common.layout import PIPELINE, SENTENCES

_ENCODERS = frozenset(
    {
        *("bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "mpnet", "modernbert", "nomic_bert"),
        *("deberta", "deberta-v2", "camembert", "ernie", "new", "gte", "eurobert", "clip", "siglip"),
    }
)
"""Types of models that read and do not write."""

_WRITERS = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
"""How the classes of models that write end."""

_SEEING = ("vision", "visual", "image", "img", "mm_", "vit_")
"""Some of these is in a name in the config.json of every model that sees."""

_SPEECH = ("cosyvoice.yaml", "cosyvoice2.yaml", "cosyvoice3.yaml")
_TOKENIZERS = (
    *("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json", "merges.txt", "*.spm", "tokenizer*.txt"),
    *("tokenization_*.py", "whitespacetokenizer_config.json"),
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_INDEX = ".index"
"""In the name of a file that says which shard has which tensor."""


def problem(spec: ModelSpec) -> str | None:
    """Why what ``spec`` names cannot be loaded; None where nothing is known to be wrong, or it is not here."""
    path = Path(spec.path).expanduser()
    if spec.embedded is not None:
        return None
    if path.suffix == ".gguf" and not path.is_dir() and spec.kind in checkpoint.KINDS:
        return f"{spec.id}: a GGUF file cannot be loaded; give a folder in the layout of transformers."
    if spec.engine_args.get("url") is not None:
        return None
    if path.is_file() and spec.kind != "tts":  # a voice of Piper is a file
        return f"{spec.id}: {path} is a file; a model is a folder, and its path is that of the folder."
    if not path.is_dir():
        return missing(spec)
    config = checkpoint.config_of(spec)
    try:
        text = _of_another_kind(spec, path, config) or _incomplete(spec, path, config) or _damaged(path)
    except OSError as error:
        text = f"{error.filename or path} cannot be read: {error.strerror or error}."
    return None if text is None else f"{spec.id}: {text}"


def missing(spec: ModelSpec) -> str | None:
    """Why the path of ``spec`` cannot be right; None where it may be. Hub ids are not looked up."""
    if spec.embedded is not None or Path(spec.path).expanduser().exists():
        return None
    if "://" in spec.path:
        return f"the model {spec.id!r} is not there: {spec.path} is an address; on a hub it is named like ORG/NAME."
    named_on_hub = not spec.path.startswith(("/", "~", ".")) and spec.path.count("/") <= 1
    if named_on_hub and spec.kind == "tts":
        fetch = f"; `quintet pull {spec.path} --into FOLDER` does" if "/" in spec.path else ""
        return f"the model {spec.id!r} is not there: {spec.path} is no folder here, and nobody fetches it{fetch}."
    if named_on_hub:
        return hub.misnamed(spec)
    return f"the model {spec.id!r} is not there: {spec.path} does not exist."


def _of_another_kind(spec: ModelSpec, folder: Path, config: dict[str, Any]) -> str | None:
    classes = [str(name) for name in config.get("architectures") or []]
    named = f"{folder} holds"
    if spec.kind != "image" and (folder / PIPELINE).is_file():
        return f"{named} a pipeline of diffusers ({PIPELINE}): kind: image."
    if spec.kind != "tts" and any((folder / name).is_file() for name in _SPEECH):
        return f"{named} a CosyVoice: kind: tts."
    if (spec.kind == "tts" or (spec.kind == "image" and not (folder / PIPELINE).is_file())) and classes:
        return f"{named} a {classes[0]} (config.json), which is not of kind {spec.kind!r}."
    if spec.kind in checkpoint.KINDS:
        return _no_language_model(spec, folder, config, classes)
    if spec.kind == "embedding" and not (folder / SENTENCES).is_file() and _writes(classes):
        return f"{named} a {classes[0]}, which writes texts, and no {SENTENCES} that makes vectors of it: kind: chat."
    return None


def _no_language_model(spec: ModelSpec, folder: Path, config: dict[str, Any], classes: list[str]) -> str | None:
    named = f"{folder} holds"
    if any(name.endswith("ForSequenceClassification") for name in classes):
        return f"{named} a {classes[0]}, which gives scores: kind: rerank."
    if (folder / SENTENCES).is_file():
        return f"{named} a model of sentence-transformers ({SENTENCES}): kind: embedding."
    if config.get("model_type") in _ENCODERS and not _writes(classes):
        return f"{named} an encoder ({config['model_type']}), which writes no texts: kind: embedding, or rerank."
    if spec.kind == "multimodal" and config.get("model_type") and not _sees(folder, config):
        return text_only(str(config["model_type"]))
    return None


def text_only(model_type: str) -> str:
    """The refusal of a model without eyes as one of kind ``multimodal``."""
    return f"it is a text model ({model_type}), which takes no pictures: kind: chat."


def _writes(classes: list[str]) -> bool:
    return any(name.endswith(_WRITERS) for name in classes)


def _sees(folder: Path, config: dict[str, Any]) -> bool:
    """Whether there is any sign of it; code that comes with a model may name things as it likes."""
    if any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return True
    named = [*config, str(config.get("model_type")), *map(str, config.get("architectures") or [])]
    return any(sign in name.lower() for name in named for sign in (*_SEEING, "minicpmv"))


def _incomplete(spec: ModelSpec, folder: Path, config: dict[str, Any]) -> str | None:
    if spec.kind == "image":
        return _incomplete_pipeline(folder)
    if spec.kind == "tts":
        if not _has(folder, "*.onnx", *_SPEECH):
            return f"{folder} has no speech model: no voice (*.onnx) and no {_SPEECH[0]}."
        return None  # its engines say what else they miss, by name
    on_vllm = checkpoint.on_vllm(spec, config)
    names = ("config.json", "params.json") if on_vllm else ("config.json",)
    names = (*names, SENTENCES) if spec.kind in checkpoint.VECTORS else names
    if not any((folder / name).is_file() for name in names):
        return f"{folder} has no config.json, so it is no folder of a model, or not all of one."
    if not (folder / SENTENCES).is_file() and (unread := _unreadable(folder / "config.json")):
        return unread
    if spec.kind in checkpoint.KINDS and not _has(folder, *_WEIGHTS):
        gguf = " GGUF files are not read." if _has(folder, "*.gguf") else ""
        return f"{folder} has no weights (*.safetensors).{gguf}"
    if spec.kind in checkpoint.VECTORS and not any(_has(place, *_WEIGHTS) for place in (folder, *_parts(folder))):
        return f"{folder} has no weights (*.safetensors)."
    if (missing := next(_missing_shards(folder), None)) is not None:
        return missing
    if spec.engine_args.get("tokenizer") or any(_has(place, *_TOKENIZERS) for place in (folder, *_parts(folder))):
        return None
    return f"{folder} has no tokenizer (tokenizer.json, or what stands for it)."


def _incomplete_pipeline(folder: Path) -> str | None:
    if not (folder / PIPELINE).is_file():
        part = " It has a part of one; name the folder above." if (folder.parent / PIPELINE).is_file() else ""
        return f"{folder} has no {PIPELINE}, so it is no pipeline of diffusers, or not all of one.{part}"
    try:
        index = json.loads(layout.text_of(folder / PIPELINE))
        parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    except (OSError, *headers.NO_JSON, AttributeError):
        return f"{folder / PIPELINE} is not valid JSON."
    for name in (name for name, value in parts.items() if None not in value):
        part = folder / name
        if not part.is_dir():
            return f"{folder} has no {name}, which its {PIPELINE} names."
        # Schedulers and tokenizers have no weights, and their configurations have names of their own.
        if (part / "config.json").is_file() and not _has(part, *_WEIGHTS):
            return f"{part} has no weights (*.safetensors)."
        if (missing := next(_missing_shards(part), None)) is not None:
            return missing
    return None


def _missing_shards(folder: Path) -> Iterator[str]:
    """Of each index, the shards that it names and that are not there. One of whose shards none is there is of a variant
    that was not fetched, if there are other weights."""
    for index in sorted(folder.glob(f"*{_INDEX}*.json")):
        stem, _, _ = index.name.partition(_INDEX)
        if (folder / stem).is_file() or (stem.endswith(".bin") and _has(folder, "*.safetensors")):
            continue
        try:
            named = sorted(set(json.loads(layout.text_of(index))["weight_map"].values()))
            missing = [name for name in named if not (folder / name).is_file()]
        except (OSError, *headers.NO_JSON, KeyError, TypeError, AttributeError):
            yield f"{index} is no index of weights."
            continue
        if missing and (len(missing) < len(named) or not _has(folder, *_WEIGHTS)):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield f"{folder / missing[0]}{more} is missing: {index.name} names it."


def _damaged(folder: Path) -> str | None:
    for file in headers.once(layout.files(folder, "*.safetensors")):
        try:
            headers.check_whole(file)
        except OSError as error:
            return str(error)
    return None


def _unreadable(file: Path) -> str | None:
    try:
        return None if isinstance(json.loads(layout.text_of(file)), dict) else f"{file} holds no JSON object."
    except FileNotFoundError:
        return None
    except (OSError, *headers.NO_JSON):
        return f"{file} is not valid JSON."


def _parts(folder: Path) -> list[Path]:
    return [part for part in folder.iterdir() if part.is_dir()]


def _has(folder: Path, *globs: str) -> bool:
    return any(True for glob in globs for _ in folder.glob(glob))
