"""``POST /audio/speech``: sound, sent sentence by sentence as it is made."""

from __future__ import annotations

import errno
import logging
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from io import SEEK_END
from tempfile import SpooledTemporaryFile
from typing import IO

from fastapi import APIRouter, Request, Response
from quintet_common import sse
from quintet_common.dialect import Dialect, RequestDialect
from quintet_common.disconnect import StreamResponse, or_disconnect
from quintet_common.errors import ApiError, bad_request
from quintet_common.observation import Observation, observation_of
from quintet_common.pool import ModelPool
from quintet_common.worker.process import Worker

from quintet_tts.api.request import MAX_WHOLE_CHARACTERS, SpeechRequest
from quintet_tts.metrics import SpeechMeter
from quintet_tts.protocol import Audio, Event, Format, Speak, Started
from quintet_tts.wav import fill_in_sizes

log = logging.getLogger("quintet.tts")
router = APIRouter()

MEDIA_TYPES: dict[Format, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
TOKENS_PER_SECOND = 20
"""Of sound, in ``usage``: what OpenAI's own speech models count."""

_IN_MEMORY = 4 << 20
"""Bytes of a WAV that is made whole, before it goes to disk."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

MAX_AHEAD = 4
"""Pieces of sound, of a sentence at most, that may wait for a client who does not keep up. Then the engine rests."""

ENGINE_HEADER = "x-quintet-engine"
"""Which engines speak this answer, so that nobody takes one for another."""

_CONTENT = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()}


@router.post(
    "/audio/speech",
    response_class=Response,
    responses={
        200: {"description": "The sound, sent as it is made.", "content": {**_CONTENT, "text/event-stream": {}}}
    },
)
async def create_speech(body: SpeechRequest, request: Request, dialect: RequestDialect) -> Response:
    """Speak a text. The first sentence is sent while the others are still being made."""
    zlai = dialect is Dialect.ZLAI
    work = body.as_work("wav" if zlai else "mp3")
    pool: ModelPool[Event] = request.app.state.pool
    worker = pool.find(body.model, "tts")
    seen = observation_of(request.scope)
    seen.model = worker.spec.id
    meter = SpeechMeter(worker.spec.id)
    sound = _sound(worker, work, meter, seen)
    if zlai and work.format == "wav" and body.stream_format != "sse":
        # Clients of this dialect save a file and open it by its header, which therefore has to be true.
        _check_whole(work)
        return _file_response(await or_disconnect(request, _whole(sound)), meter.engines)
    # Until there is sound, whatever goes wrong is still answered with its status.
    first = await or_disconnect(request, anext(sound))
    headers = {ENGINE_HEADER: meter.engines}
    if body.stream_format == "sse":
        response = sse.sse_response(_events(_after(first, sound), meter))
        response.headers.update(headers)
        return response
    return StreamResponse(_after(first, sound), MEDIA_TYPES[work.format], headers)


async def _sound(
    worker: Worker[Event], work: Speak, meter: SpeechMeter, seen: Observation
) -> AsyncGenerator[bytes, None]:
    """What the worker sends, counted. Closing it cancels the work."""
    async with await worker.submit(work, MAX_AHEAD) as job:
        async for event in job:
            if isinstance(event, Started):
                meter.started(event)
            elif isinstance(event, Audio):
                meter.spoke(event)
                seen.use("characters", event.characters)
                seen.use("audio_seconds", event.seconds)
                if event.data:
                    seen.mark_first_output()
                    yield event.data
    meter.ended()


async def _after(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for data in rest:
            yield data


def _check_whole(work: Speak) -> None:
    """Raises ApiError 400 for a text that is too long to be answered with one whole file."""
    if len(work.text) > MAX_WHOLE_CHARACTERS:
        message = (
            f"input has {len(work.text)} characters; a WAV that is made whole can speak {MAX_WHOLE_CHARACTERS}. "
            "Ask for another response_format, or on the path with /v1, where sound is sent as it is made."
        )
        raise bad_request(message, "input", "string_above_max_length")


async def _whole(sound: AsyncGenerator[bytes, None]) -> IO[bytes]:
    """A WAV file with its sizes filled in; on disk once it is large. Raises ApiError 507 where the disk is full."""
    file: IO[bytes] = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  closed by who reads it
    async with aclosing(sound):
        try:
            async for piece in sound:
                file.write(piece)
            fill_in_sizes(file)
            file.flush()
        except OSError as error:
            with suppress(OSError):  # closing writes what could not be written
                file.close()
            if error.errno not in _NO_ROOM:
                raise
            log.error("a whole WAV cannot be kept: %s", error)
            raise ApiError(
                507,
                "The server has no room on its disk for the whole sound. Ask for another response_format, or on the "
                "path with /v1, where sound is sent as it is made.",
                code="disk_full",
                retry=False,
            ) from None
    return file


def _file_response(file: IO[bytes], engines: str) -> Response:
    length = file.seek(0, SEEK_END)
    file.seek(0)
    response = StreamResponse(_read(file), "audio/wav", {ENGINE_HEADER: engines})
    response.headers["content-length"] = str(length)
    return response


async def _read(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while data := file.read(1 << 18):
            yield data


async def _events(sound: AsyncIterator[bytes], meter: SpeechMeter) -> AsyncIterator[bytes]:
    async for data in sound:
        yield sse.event({"type": "speech.audio.delta", "audio": b64encode(data).decode()})
    yield sse.event({"type": "speech.audio.done", "usage": _usage(meter)})


def _usage(meter: SpeechMeter) -> dict[str, object]:
    """OpenAI's fields in what is nearest to tokens, characters in and twentieths of a second out; then the units."""
    spoken = round(meter.seconds * TOKENS_PER_SECOND)
    return {
        "input_tokens": meter.characters,
        "output_tokens": spoken,
        "total_tokens": meter.characters + spoken,
        "characters": meter.characters,
        "audio_seconds": round(meter.seconds, 3),
    }
