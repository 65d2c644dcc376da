"""The app of the chat service and of the multimodal service: one code, two containers."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI
from quintet_common import app
from quintet_common.models_yml import ModelSpec
from quintet_common.pool import ModelPool

from quintet_chat.api.chat import chat_router
from quintet_chat.api.completions import completions_router
from quintet_chat.api.responses import responses_router
from quintet_chat.api.tokens import tokens_router
from quintet_chat.protocol import Event

WORKER = "quintet_chat.worker:create_engine"

Service = Literal["chat", "multimodal"]
"""The service's name is the kind of its models."""


def create_app(service: Service, specs: list[ModelSpec], factory: str = WORKER) -> FastAPI:
    """``specs`` are the models, all of kind ``service``; ``factory`` makes a worker's engine."""
    pool: ModelPool[Event] = ModelPool(specs, factory, Event)
    routes = (chat_router, completions_router, responses_router, tokens_router)
    return app.create_app(service, pool, [router(service) for router in routes])
