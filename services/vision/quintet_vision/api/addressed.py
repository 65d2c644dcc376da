"""Edits as JSON: their pictures are addresses, ``http(s)://`` or ``data:``, in place of files."""

from __future__ import annotations

import asyncio
import json

from fastapi import Request
from pydantic import ValidationError
from quintet_common.disconnect import or_disconnect
from quintet_common.errors import bad_request, missing_field, validation_error
from quintet_common.media import Picture, picture_from_url

from quintet_vision.api.requests import AddressedEditRequest, PictureAddress
from quintet_vision.api.uploads import Pictures, check_mask, refuse_markup


def is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def read_addressed_edit(request: Request) -> tuple[AddressedEditRequest, Pictures]:
    """The fields, and the pictures fetched. Raises ApiError 400."""
    body = await request.body()
    try:
        fields = AddressedEditRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors()
        raise validation_error(errors, None if errors[0]["type"] == "json_invalid" else json.loads(body)) from None
    refuse_markup(fields.markup)
    return fields, await or_disconnect(request, _fetched(fields))


async def _fetched(fields: AddressedEditRequest) -> Pictures:
    wanted = [(f"images[{index}]", each) for index, each in enumerate(fields.images)]
    if fields.mask is not None:
        wanted.append(("mask", fields.mask))
    addresses = [_address(each, name) for name, each in wanted]
    found: list[Picture] = await asyncio.gather(*(picture_from_url(url, param) for url, param in addresses))
    mask = None if fields.mask is None else found.pop()
    if mask is not None:
        check_mask(mask, found[0])
    return Pictures(found[0], found[1:], mask)


def _address(picture: PictureAddress, name: str) -> tuple[str, str]:
    """The URL and the name of its field."""
    if picture.file_id is not None:
        raise bad_request(f"{name}.file_id: no files are stored here.", f"{name}.file_id", "unsupported_content")
    if picture.image_url is None:
        raise missing_field(f"{name}.image_url")
    return picture.image_url, f"{name}.image_url"
