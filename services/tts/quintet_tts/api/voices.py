"""``GET /audio/voices`` and ``GET /audio/models``: who speaks, and with which engine."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from quintet_common.observation import observation_of
from quintet_common.pool import ModelPool
from quintet_common.worker.process import State, Worker

from quintet_tts.protocol import Event, ListVoices, Voices
from quintet_tts.voices import Voice

router = APIRouter()


@router.get("/audio/voices")
async def list_voices(request: Request, model: str | None = None) -> dict[str, Any]:
    """The voices of one model, or of every model that is loaded.

    ``engine`` is who really speaks, ``alias_of`` the voice behind a borrowed name, ``available`` whether its engine is
    installed.
    """
    pool: ModelPool[Event] = request.app.state.pool
    if model is None:
        workers = [worker for worker in pool if worker.state is State.READY] or [pool.find(None, "tts")]
    else:
        workers = [pool.find(model, "tts")]
        observation_of(request.scope).model = workers[0].spec.id
    listed = [_entry(worker.spec.id, voice) for worker in workers for voice in await _voices(worker)]
    return {"object": "list", "voices": listed}


@router.get("/audio/models")
async def list_speech_models(request: Request) -> dict[str, Any]:
    """The speech models alone, in the shape that Open WebUI's settings ask for."""
    pool: ModelPool[Event] = request.app.state.pool
    return {"models": [{"id": worker.spec.id, "name": worker.spec.id} for worker in pool]}


async def _voices(worker: Worker[Event]) -> list[Voice]:
    async with await worker.submit(ListVoices()) as job:
        async for event in job:
            if isinstance(event, Voices):
                return event.voices
    return []


def _entry(model: str, voice: Voice) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": voice.id,
        "name": voice.name,
        "model": model,
        "language": voice.language,
        "engine": voice.engine,
        "available": voice.available,
    }
    optional = {"gender": voice.gender, "alias_of": voice.alias_of, "note": voice.note}
    return entry | {key: value for key, value in optional.items() if value is not None}
