"""What the values of an entry of models.yml may be, as far as it is known before any engine is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from quintet_common import checkpoint, embedded, engine_args, wheels, wording
from quintet_common.sizes import parse_bytes

if TYPE_CHECKING:
    from quintet_common.entries import ModelSpec

_CHAT = ("auto", "transformers", "vllm")
_VECTORS = ("auto", "sentence-transformers")
ENGINES: dict[str, tuple[str, ...]] = {
    "chat": _CHAT,
    "multimodal": _CHAT,
    "image": ("auto", "diffusers"),
    "tts": ("auto", "cosyvoice", "hibari", "kokoro", "piper"),
    "embedding": _VECTORS,
    "rerank": _VECTORS,
}
"""The engines of each kind."""

EMBEDDED_KINDS: dict[str, str] = {
    "smollm2-135m-instruct": "chat",
    "ppocr": "multimodal",
    "emoji-64": "image",
    "hibari": "tts",
    "kokoro": "tts",
    "all-minilm-l6-v2": "embedding",
}
"""The kind of each embedded model."""

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:\d+)?")
"""As browsers write it: in small letters."""
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
MEMORY = "{0: 20GB, cpu: 8GB}"
"""How it is written."""

_OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "chat": ("completion", "completions", "llm", "text", "text-generation"),
    "multimodal": ("vlm", "vision", "vision-language", "image-text-to-text"),
    "image": ("images", "picture", "pictures", "diffusion", "diffuser", "diffusers", "vision", "text-to-image"),
    "tts": ("speech", "audio", "voice", "voices", "text-to-speech"),
    "embedding": ("embed", "embeddings", "vector", "vectors", "sentence-similarity", "feature-extraction"),
    "rerank": ("reranker", "rerankers", "reranking", "ranking", "text-ranking"),
}
"""What people call the kinds."""


def mistakes_in(spec: ModelSpec) -> Iterator[tuple[list[str], str]]:
    """Each value of ``spec`` that cannot be right: its keys, and why."""
    engines = ENGINES[spec.kind]
    if spec.engine not in engines:
        text = f"{spec.engine!r} is no engine of kind {spec.kind!r}; {_one_of(spec.engine, engines)}"
        yield ["engine"], text
    elif another := _another_engine(spec):
        yield ["engine"], another
    if not _DEVICE.fullmatch(spec.device):
        yield ["device"], f"{spec.device!r} is not auto, cpu, cuda or like cuda:1."
    for device, limit in spec.memory.items():
        if device != "cpu" and not (isinstance(device, int) and device >= 0):
            yield ["memory"], f"{device!r} is no device; a GPU is named by its number, the machine is cpu: {MEMORY}."
        try:
            parse_bytes(limit)
        except ValueError as error:
            yield ["memory"], str(error)
    for key, text in engine_args.mistakes(spec.engine_args, *_tables(spec)):
        yield ["engine_args", key], text


def _another_engine(spec: ModelSpec) -> str | None:
    """Why an engine that there is does not run the embedded model of ``spec``."""
    known = embedded.EMBEDDED.get(spec.embedded or "")
    if known is None or spec.engine in ("auto", known.engine):
        return None
    own = f"auto or {known.engine}" if known.engine else "auto"
    return f"{spec.engine!r} does not run {spec.path}; it is {own}."


def _tables(spec: ModelSpec) -> tuple[type[engine_args.Table], ...]:
    """Those of the engines that may run it."""
    seen = spec.engine != "auto" or spec.embedded is not None or Path(spec.path).expanduser().is_dir()
    on_vllm = checkpoint.on_vllm(spec, checkpoint.config_of(spec)) if seen else None
    return engine_args.tables_for(spec, on_vllm=on_vllm)


def embedded_mistake(spec: ModelSpec) -> str | None:
    """Why the embedded model of ``spec`` cannot be there; None where it is, or where the weights are elsewhere."""
    if spec.embedded is None:
        return None
    kind = EMBEDDED_KINDS.get(spec.embedded)
    if kind is None:
        return f"there is no embedded model {spec.embedded!r}; {_one_of(spec.embedded, EMBEDDED_KINDS)}"
    if kind != spec.kind:
        return f"{spec.path} is of kind {kind!r}, not {spec.kind!r}."
    return wheels.missing(spec.embedded)


def url_mistake(url: str) -> str | None:
    """Why the ``url`` of an upstream is none; None where it may be."""
    try:
        parts = urlsplit(url.removeprefix("dns+"))
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or half an IPv6 address
        right = False
    if not right or not url.isprintable() or " " in url:
        return f"{url!r} is not an address like http://host:8000 or dns+http://name:8000."
    if parts.username is not None or parts.query or parts.fragment:  # not repeated: there may be a password in it
        return "it has more than a host, a port and a path; what the upstream asks for as a bearer token goes to 'key'."
    return None


def key_mistake(key: str) -> str | None:
    """Why no header can carry the ``key`` of an upstream; None where one can. Does not tell the key."""
    if key.isascii() and key.isprintable() and " " not in key:
        return None
    if not key.endswith("\n"):
        return "it is visible ASCII characters without blanks."
    return "it ends with a line break, which '|' and '>' keep; write it behind 'key: '."


def _scheme_mistake(url: str, schemes: tuple[str, ...], like: str) -> str | None:
    try:
        parts = urlsplit(url)
        right = parts.scheme in schemes and bool(parts.hostname)
    except ValueError:
        right = False
    return None if right else f"{url!r} is not like {like}."


def redis_mistake(url: str) -> str | None:
    """Why there is no Redis at ``url``; None where there may be one."""
    return _scheme_mistake(url, ("redis", "rediss"), "redis://host:6379")


def traces_mistake(url: str) -> str | None:
    """Why no spans can be sent to ``url``; None where they can."""
    return _scheme_mistake(url, ("http", "https"), "http://host:4318")


def origin_mistake(origin: str) -> str | None:
    """Why no browser has pages of this origin; None where one may, and for ``*``, which is all."""
    if origin == "*" or _ORIGIN.fullmatch(origin):
        return None
    return f"{origin!r} is not an origin like https://chat.example.com, nor '*'."


def path_mistake(folder: Path, path: str) -> str | None:
    """Why the system cannot even look whether ``path`` is there; None where it can."""
    try:
        (folder / Path(path).expanduser()).exists()
    except OSError as error:
        return f"{path[:80]} cannot be looked at: {error.strerror}."
    except RuntimeError:
        return f"{path[:80]} is in the home of nobody here."
    return None


def kind_meant(word: str, names: Iterable[str]) -> str:
    """``; did you mean 'KIND'?`` for what people call a kind, else for the nearest of ``names``; '.' where none is."""
    known = list(names)
    found = [kind for kind, others in _OTHER_WORDS.items() if kind in known and word.lower() in (kind, *others)]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else wording.meant(word, known)


def _one_of(word: str, choices: Iterable[str]) -> str:
    names = list(choices)
    return f"it is one of {', '.join(names)}{wording.meant(word, names)}"
