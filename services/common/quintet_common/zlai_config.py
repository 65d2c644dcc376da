"""ZLAI's ``models_config.yml`` in Quintet's terms, so that its users' file starts unchanged."""

from __future__ import annotations

import re
from typing import Any

import msgspec

KEY = "models_config"

_FIELDS: dict[str, str] = {"model_name": "id", "model_path": "path", "max_memory": "memory"}
_OURS: dict[str, str] = {ours: theirs for theirs, ours in _FIELDS.items()} | {"models": KEY, "kind": "model_type"}

_KIND_OF_TYPE = {
    "completion": "chat",
    "chat": "chat",
    "embedding": "embedding",
    "multimodal": "multimodal",
    "vision": "multimodal",
    "image": "image",
    "diffuser": "image",
    "diffusers": "image",
    "audio": "tts",
    "tts": "tts",
    "rerank": "rerank",
}
TYPES = list(_KIND_OF_TYPE)
"""What ``model_type`` may be."""

_KIND_OF_METHOD = {
    "load_glm4v": "multimodal",
    "load_glm4_v": "multimodal",
    "load_mini_cpm": "multimodal",
    "load_minicpm": "multimodal",
    "load_qwen2_vl": "multimodal",
    "load_qwen": "chat",
    "load_glm4": "chat",
    "load_kolors": "image",
    "load_cosy": "tts",
    "load_bge": "embedding",
    "load_embedding": "embedding",
}
METHODS = list(_KIND_OF_METHOD)
"""How ``load_method`` may begin."""

_SEES = re.compile(r"glm-?4v|minicpm-?v|cogvlm|internvl|-vl(?![a-z])", re.IGNORECASE)
"""Names of chat models that take pictures: ZLAI loads glm-4v-9b with the method of glm-4-9b-chat."""

DROPPED = ("model_type", "load_method", "generate_method")
"""Keys that have no meaning beside ours; the last one names a class of ZLAI's."""


def names_of(part: str | int) -> str | int:
    """The key that a ZLAI file writes for one of ours; a mistake is told with it, and with its line."""
    return _OURS.get(part, part) if isinstance(part, str) else part


def translate(data: dict[str, Any]) -> tuple[dict[str, Any], dict[int, msgspec.ValidationError]]:
    """``models_config:`` entries as ``models:`` entries; and by their index what is wrong with those that stay as they
    are, with paths inside of the entry."""
    entries = data[KEY]
    wrong: dict[int, msgspec.ValidationError] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            entries = [*entries[:index], _entry(entry), *entries[index + 1 :]]
        except msgspec.ValidationError as error:
            wrong[index] = error
    return {**{key: value for key, value in data.items() if key != KEY}, "models": entries}, wrong


def _entry(entry: Any) -> Any:
    """Raises msgspec.ValidationError for a word that stands for no kind, and for a key in both dialects."""
    if not isinstance(entry, dict):
        return entry
    model_type, method = _word(entry, "model_type"), _word(entry, "load_method")
    if twice := next(((theirs, ours) for theirs, ours in _FIELDS.items() if theirs in entry and ours in entry), None):
        raise msgspec.ValidationError(f"{twice[0]!r} says the same, leave one of them out - at `$.{twice[1]}`")
    kind = _kind(model_type, method)
    if kind == "chat" and _SEES.search(f"{entry.get('model_name')} {entry.get('model_path')}"):
        kind = "multimodal"
    if kind is None and (model_type or method):
        key = "model_type" if model_type else "load_method"
        raise msgspec.ValidationError(f"Invalid enum value '{model_type or method}' - at `$.{key}`")
    rest: dict[str, Any] = {
        _FIELDS.get(str(key), str(key)): value for key, value in entry.items() if key not in DROPPED
    }
    return {**({} if kind is None else {"kind": kind}), "owned_by": "Open Source", **rest}


def _word(entry: dict[Any, Any], key: str) -> str:
    """Empty where there is none. Raises msgspec.ValidationError for what is no text."""
    try:
        return msgspec.convert(entry.get(key), str | None) or ""
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{key}`") from None


def _kind(model_type: str, method: str) -> str | None:
    """The loader says more than the type: ZLAI calls a picture model ``completion`` too."""
    by_method = next((kind for prefix, kind in _KIND_OF_METHOD.items() if method.startswith(prefix)), None)
    return by_method or _KIND_OF_TYPE.get(model_type)
