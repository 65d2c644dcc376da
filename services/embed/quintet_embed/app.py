"""The app of the embed service."""

from __future__ import annotations

from fastapi import FastAPI
from quintet_common.app import create_app as create_service
from quintet_common.models_yml import ModelSpec
from quintet_common.pool import ModelPool

from quintet_embed.api import embeddings, rerank, tokenize
from quintet_embed.metrics import SERVICE
from quintet_embed.protocol import Event

KINDS = {"embedding", "rerank"}


def create_app(specs: list[ModelSpec]) -> FastAPI:
    """The service for these models; each is loaded in a process of its own when the app starts."""
    pool: ModelPool[Event] = ModelPool(specs, "quintet_embed.engine.engine:EmbedEngine", Event)
    return create_service(SERVICE, pool, [embeddings.router, rerank.router, tokenize.router])
