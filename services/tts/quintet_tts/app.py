"""The speech service: its app, made of the models of its kind."""

from __future__ import annotations

from fastapi import FastAPI
from quintet_common.app import create_app
from quintet_common.models_yml import ModelSpec
from quintet_common.pool import ModelPool

from quintet_tts import protocol
from quintet_tts.api import router

KINDS: set[str] = {"tts"}
MAX_BODY = 2 << 20
"""Bytes of a request: the longest text in any encoding, several times over."""


def create(specs: list[ModelSpec]) -> FastAPI:
    pool: ModelPool[protocol.Event] = ModelPool(specs, "quintet_tts.engine.engine:SpeechEngine", protocol.Event)
    return create_app("tts", pool, [router], max_body=MAX_BODY)
