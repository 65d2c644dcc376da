"""The speech slice of OpenAI's API."""

from fastapi import APIRouter

from quintet_tts.api import speech, voices

router = APIRouter(tags=["audio"])
router.include_router(speech.router)
router.include_router(voices.router)
