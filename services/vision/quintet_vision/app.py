"""The vision service: image models behind the images slice of the OpenAI API."""

from __future__ import annotations

from fastapi import FastAPI
from quintet_common.app import create_app
from quintet_common.models_yml import ModelSpec
from quintet_common.pool import ModelPool

from quintet_vision.api.results import SERVICE
from quintet_vision.api.routes import router
from quintet_vision.files import FileStore
from quintet_vision.protocol import Event

KINDS = {"image"}
ENGINE = "quintet_vision.engine:ImageEngine"


def create(specs: list[ModelSpec]) -> FastAPI:
    pool: ModelPool[Event] = ModelPool(specs, ENGINE, Event)
    app = create_app(SERVICE, pool, [router])
    app.state.files = FileStore()
    return app
