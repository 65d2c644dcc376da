"""Which services a models.yml needs, and where each kind of model answers."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from quintet_common.models_yml import Config


@dataclass(frozen=True)
class Service:
    """``python -m module`` serves the models of ``kinds``."""

    name: str
    module: str
    kinds: frozenset[str]


SERVICES = (
    Service("chat", "quintet_chat", frozenset({"chat"})),
    Service("multimodal", "quintet_chat.multimodal", frozenset({"multimodal"})),
    Service("vision", "quintet_vision", frozenset({"image"})),
    Service("tts", "quintet_tts", frozenset({"tts"})),
    Service("embed", "quintet_embed", frozenset({"embedding", "rerank"})),
)
ROUTER_MODULE = "quintet_router"

KINDS = frozenset(kind for service in SERVICES for kind in service.kinds)

ENDPOINTS = {
    "chat": "/v1/chat/completions",
    "multimodal": "/v1/chat/completions",
    "image": "/v1/images/generations",
    "tts": "/v1/audio/speech",
    "embedding": "/v1/embeddings",
    "rerank": "/v1/rerank",
}
"""Where a model of each kind answers first of all."""

UPSTREAM, UNUSABLE = "upstream", "cannot be used"
"""In tables: in place of a kind, and in place of a state."""


def needed_services(config: Config, kinds: Set[str]) -> list[Service]:
    """The services that have a model among ``kinds``, in the order of the table above."""
    wanted = {spec.kind for spec in config.models if spec.kind in kinds}
    return [service for service in SERVICES if service.kinds & wanted]
