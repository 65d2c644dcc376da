"""Multipart bodies: text fields checked as a pydantic model, files as pictures."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, ValidationError
from quintet_common.characters import half_in
from quintet_common.errors import ApiError, bad_request, missing_field, validation_error
from quintet_common.media import Picture, picture_from_bytes
from starlette.datastructures import FormData, UploadFile

from quintet_vision.protocol import MAX_IMAGES

RequestT = TypeVar("RequestT", bound=BaseModel)

_MAX_FILES = 20
_IMAGE_FIELDS = ("image", "image[]")


@dataclass(frozen=True)
class Pictures:
    """What an edit works on. ``references`` are the further pictures that its prompt speaks of."""

    image: Picture
    references: list[Picture]
    mask: Picture | None


@asynccontextmanager
async def read_form(request: Request) -> AsyncIterator[FormData]:
    """The multipart body; its files are gone afterwards. Raises ApiError 415 for any other kind of body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, "This endpoint takes multipart/form-data: the picture is sent as a file.")
    form = await request.form(max_files=_MAX_FILES, max_fields=100)
    try:
        yield form
    finally:
        await form.close()


def text_fields(form: FormData, kind: type[RequestT]) -> RequestT:
    """The fields of ``form`` that are text, as ``kind``; empty ones count as absent. Raises ApiError 400."""
    fields: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str) and value != ""}
    if (halves := half_in(fields)) is not None:  # a form names its charset, and some of those have them
        raise halves
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise validation_error(error.errors(), fields) from None


async def one_image(form: FormData) -> Picture:
    """The only picture. Raises ApiError 400."""
    return (await images(form, most=1))[0]


async def images(form: FormData, most: int = MAX_IMAGES) -> list[Picture]:
    """The pictures to work on, at least one, sent as ``image`` or ``image[]``. Raises ApiError 400."""
    sent = [value for name in _IMAGE_FIELDS for value in form.getlist(name)]
    if not sent:
        raise missing_field("image")
    if len(sent) > most:
        raise bad_request(f"{len(sent)} images were sent; {most} is the most.", "image", "too_many_images")
    names = ["image"] if len(sent) == 1 else [f"image[{index}]" for index in range(len(sent))]
    return [await _picture(each, name) for each, name in zip(sent, names, strict=True)]


async def pictures_of(form: FormData) -> Pictures:
    """The pictures of an edit, and its mask if there is one. Raises ApiError 400."""
    refuse_markup(form.get("markup"))
    image, *references = await images(form)
    sent = form.get("mask")
    if sent is None or sent == "":
        return Pictures(image, references, None)
    mask = await _picture(sent, "mask")
    check_mask(mask, image)
    return Pictures(image, references, mask)


def refuse_markup(markup: object) -> None:
    """Raises ApiError 400 if there is any."""
    if markup:
        raise bad_request("markup is not supported; say in the prompt what is to change.", "markup")


def check_mask(mask: Picture, image: Picture) -> None:
    """A mask is as large as ``image`` and has an alpha channel. Raises ApiError 400."""
    if (mask.width, mask.height) != (image.width, image.height):
        raise bad_request(
            f"The mask has {mask.width}x{mask.height} pixels, the image {image.width}x{image.height}; they must be "
            "the same.",
            "mask",
        )
    with Image.open(io.BytesIO(mask.data)) as opened:
        if not opened.has_transparency_data:
            raise bad_request("The mask has no alpha channel; it is transparent where the image may change.", "mask")


async def _picture(sent: UploadFile | str, param: str) -> Picture:
    if isinstance(sent, str):
        raise bad_request(f"{param} must be sent as a file.", param)
    return await picture_from_bytes(await sent.read(), param)
