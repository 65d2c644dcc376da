"""Pictures that come in with requests: by URL, as a data URL or as bytes; out comes one that every model can read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from quintet_common.errors import ApiError, bad_request
from quintet_common.fetch import Limits, fetch
from quintet_common.memory import return_large_blocks

MAX_BYTES = 20 << 20
"""Bytes of one encoded picture."""

MAX_PIXELS = 50_000_000
"""Pixels of one picture. Checked before decoding: a few kilobytes can claim to be gigabytes."""

MAX_SIDE = 20_000

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_KEPT = {"PNG": ("L", "RGB", "RGBA"), "JPEG": ("L", "RGB")}
"""Formats and modes that are passed on as they came."""

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.ASCII | re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}", re.ASCII)

_ORIENTATION = 0x0112
"""The EXIF tag that says how to turn a picture; 1 is upright."""

_decoders = ThreadPoolExecutor(2, "decode", initializer=return_large_blocks)
"""Decoded pictures are large, so few are in memory at a time, and none stays there."""


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded once to its last pixel: PNG or JPEG, upright, not animated, sizes in pixels."""

    data: bytes
    width: int
    height: int
    format: str


async def picture_from_url(url: str, param: str, *, zlai: bool = False) -> Picture:
    """The picture at an http(s) or data URL.

    ZLAI's dialect also has base64 with nothing before it, and URLs of this machine (see ``addresses``).

    Raises ApiError 400 that names ``param``.
    """
    if url[:5].lower() == "data:":
        return await picture_from_bytes(_from_data_url(url, param), param)
    if url[:7].lower() == "http://" or url[:8].lower() == "https://":
        data = await fetch(url, Limits(MAX_BYTES, "image/", loopback=zlai), param)
        return await picture_from_bytes(data, param)
    if zlai and _BASE64.match(url):
        return await picture_from_bytes(_from_base64(url, param), param)
    raise bad_request(f"{param}: expected an http, https or data URL.", param, "invalid_url")


async def picture_from_bytes(data: bytes, param: str) -> Picture:
    """Check and decode an encoded picture. Raises ApiError 400 that names ``param``."""
    if len(data) > MAX_BYTES:
        raise bad_request(f"{param}: the picture is larger than {MAX_BYTES >> 20} MiB.", param, "file_too_large")
    return await asyncio.get_running_loop().run_in_executor(_decoders, _decode, data, param)


def _from_data_url(url: str, param: str) -> bytes:
    match = _DATA_URL.match(url[:512])
    if match is None or not match[3]:
        raise _invalid("the data URL is not of the form data:image/...;base64,...", param)
    if match[1] and not match[1].lower().startswith(("image/", "application/octet-stream")):
        raise _invalid(f"the data URL holds {match[1][:60]!r}, not a picture", param)
    return _from_base64(url[match.end() :], param)


def _from_base64(text: str, param: str) -> bytes:
    """Base64 of either alphabet, with or without its padding, line breaks allowed."""
    if len(text) > MAX_BYTES * 3 // 2:
        raise bad_request(f"{param}: the picture is larger than {MAX_BYTES >> 20} MiB.", param, "file_too_large")
    compact = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("the base64 cannot be decoded", param) from None


def _decode(data: bytes, param: str) -> Picture:
    found = _read(data, param)
    if isinstance(found, ApiError):
        raise found
    return found


def _read(data: bytes, param: str) -> Picture | ApiError:
    """Returns what it refuses: an error raised in here would keep the frames that hold the pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                return _too_large(f"has {width} x {height} pixels", param)
            image.load()
            return _canonical(image, data)
    except Image.DecompressionBombError:
        return _too_large("has far too many pixels", param)
    except UnidentifiedImageError:
        return _invalid(f"not a picture of a known kind ({', '.join(FORMATS)})", param)
    except Exception:  # Pillow's decoders raise nearly anything on broken files
        return _invalid("the picture is damaged", param)


def _canonical(image: Image.Image, data: bytes) -> Picture:
    """The same pixels, upright, first frame; encoded anew as PNG unless the bytes are that already."""
    name = image.format or ""
    orientation = _orientation(image)
    is_plain = orientation == 1 and getattr(image, "n_frames", 1) == 1
    if is_plain and image.mode in _KEPT.get(name, ()) and "transparency" not in image.info:
        return Picture(data, image.width, image.height, name.lower())
    upright = image if orientation is None else ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits per pixel; Pillow would clip where it should scale
        upright = upright.convert("I").point(lambda value: value / 256).convert("L")
    buffer = io.BytesIO()
    upright.convert("RGBA" if upright.has_transparency_data else "RGB").save(buffer, "PNG", compress_level=1)
    return Picture(buffer.getvalue(), upright.width, upright.height, "png")


def _orientation(image: Image.Image) -> int | None:
    """None where the EXIF data is broken: its pixels are whole all the same, and other programs show them."""
    try:
        orientation: int = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as decoders do
        return None
    return orientation


def _invalid(reason: str, param: str) -> ApiError:
    return bad_request(f"{param}: {reason}.", param, "invalid_image")


def _too_large(what: str, param: str) -> ApiError:
    limits = f"at most {MAX_PIXELS // 1_000_000} million pixels and {MAX_SIDE} on a side are read"
    return bad_request(f"{param}: the picture {what}; {limits}.", param, "picture_too_large")
