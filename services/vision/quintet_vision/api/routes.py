"""``/images/generations``, ``/images/edits``, ``/images/variations``, and the files that answers point to."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from openai.types import ImagesResponse
from quintet_common.disconnect import or_disconnect
from quintet_common.errors import ApiError
from quintet_common.observation import observation_of
from quintet_common.pool import ModelPool
from quintet_common.sse import sse_response

from quintet_vision.api.addressed import is_json, read_addressed_edit
from quintet_vision.api.requests import (
    AddressedEditRequest,
    EditRequest,
    GenerationRequest,
    ImageRequest,
    PromptRequest,
    VariationRequest,
)
from quintet_vision.api.results import Answering, collected, streamed
from quintet_vision.api.uploads import Pictures, one_image, pictures_of, read_form, text_fields
from quintet_vision.files import FileStore
from quintet_vision.protocol import Draw, Event

router = APIRouter(tags=["images"])

_HOST = re.compile(r"[A-Za-z0-9.\-_]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


def _multipart(kind: type[ImageRequest], files: dict[str, str], required: list[str]) -> dict[str, Any]:
    """What /docs shows of a multipart body: the text fields of ``kind`` and ``files`` with their descriptions."""
    schema = kind.model_json_schema()
    uploads = {name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()}
    schema["properties"] = {**uploads, **schema["properties"]}
    schema["required"] = required
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_IMAGE = "PNG, JPEG, WebP, GIF or BMP; also as image[]"
_MASK = "PNG of the same size, transparent where the image may change"


def _edit_bodies() -> dict[str, Any]:
    """What /docs shows of an edit, which comes as a form with files or as JSON with addresses."""
    files = {"image": f"{_IMAGE}, up to 16", "mask": _MASK}
    bodies = _multipart(EditRequest, files, ["image", "prompt"])
    schema = AddressedEditRequest.model_json_schema()
    address = schema.pop("$defs")["PictureAddress"]
    schema["properties"] |= {"images": {"type": "array", "items": address}, "mask": address}
    bodies["requestBody"]["content"]["application/json"] = {"schema": schema}
    return bodies


@router.post("/images/generations", response_model=None)
async def generate(request: Request, body: GenerationRequest) -> Response:
    """Pictures from a prompt."""
    return await _answer(request, body, body.draw(), "image_generation")


@router.post("/images/edits", response_model=None, openapi_extra=_edit_bodies())
async def edit(request: Request) -> Response:
    """A picture changed as a prompt says, all of it or what a mask leaves open."""
    fields: EditRequest
    if is_json(request):
        fields, pictures = await read_addressed_edit(request)
    else:
        fields, pictures = await _uploaded_edit(request)
    draw = fields.draw(
        image=pictures.image.data,
        references=[each.data for each in pictures.references],
        mask=None if pictures.mask is None else pictures.mask.data,
    )
    return await _answer(request, fields, draw, "image_edit")


async def _uploaded_edit(request: Request) -> tuple[EditRequest, Pictures]:
    async with read_form(request) as form:
        fields = text_fields(form, EditRequest)
        return fields, await pictures_of(form)


@router.post(
    "/images/variations",
    response_model=None,
    openapi_extra=_multipart(VariationRequest, {"image": _IMAGE}, ["image"]),
)
async def vary(request: Request) -> Response:
    """Pictures like a given one."""
    async with read_form(request) as form:
        fields = text_fields(form, VariationRequest)
        image = await one_image(form)
    return await _answer(request, fields, fields.draw(image=image.data), "image_variation")


@router.get("/images/files/{name}", response_model=None)
@router.head("/images/files/{name}", response_model=None, include_in_schema=False)
async def file(request: Request, name: str) -> Response:
    """A picture that an answer with ``response_format: url`` points to, for an hour."""
    store: FileStore = request.app.state.files
    found = store.get(name)
    if found is None:
        raise ApiError(404, "There is no such file, or it has expired.")
    return Response(found.data, media_type=found.media_type, headers={"cache-control": "private, max-age=3600"})


async def _answer(request: Request, fields: ImageRequest, draw: Draw, prefix: str) -> Response:
    pool: ModelPool[Event] = request.app.state.pool
    worker = pool.find(fields.model, "image")
    if not draw.loras and fields.model in worker.info.get("loras", []):  # an alias of the model that names a LoRA
        draw.loras = {str(fields.model): 1.0}
    seen = observation_of(request.scope)
    seen.model = worker.spec.id
    quality = fields.quality if isinstance(fields, PromptRequest) else None
    answer = Answering(worker.spec.id, draw, quality, fields.safety_identifier or fields.user, seen)
    if isinstance(fields, PromptRequest) and fields.stream:
        events = streamed(answer, worker, prefix)
        await or_disconnect(request, anext(events))
        return sse_response(events)
    store: FileStore | None = request.app.state.files if fields.response_format == "url" else None
    result: ImagesResponse = await or_disconnect(request, collected(answer, worker, store, _base_url(request)))
    return JSONResponse(result.model_dump(mode="json", exclude_unset=True))


def _base_url(request: Request) -> str:
    """Where the client reaches this service through whatever proxies stand before it, with ``/v1`` if it used that."""
    headers = request.headers
    host = headers.get("x-forwarded-host", headers.get("host", "")).split(",")[0].strip()
    scheme = headers.get("x-forwarded-proto", request.url.scheme).split(",")[0].strip()
    if not _HOST.fullmatch(host):
        host = f"{request.url.hostname}:{request.url.port}"
    prefix = "/v1" if request.url.path.startswith("/v1/") else ""
    return f"{scheme if scheme in ('http', 'https') else 'http'}://{host}{prefix}"
