"""Scheduling inside a model's process: a fair queue, batches by token budget, one tokeniser and one model thread."""

from __future__ import annotations

from quintet_common.models_yml import ModelSpec

from quintet_embed.engine.engine import EmbedEngine


def create_engine(spec: ModelSpec) -> EmbedEngine:
    """The engine of a worker process. Libraries are imported when it loads, so that loading can say how far it is."""
    return EmbedEngine(spec)
