"""Geometry and encoding of pictures: from any size to what a model draws, and from that to the size asked for."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from quintet_vision.protocol import Format

Size = tuple[int, int]
"""Width, height."""

_SMOOTH = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Box:
    """A picture inside a larger frame, in pixels of the frame."""

    left: int
    top: int
    width: int
    height: int

    @property
    def edges(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.width, self.top + self.height


def contained(inner: Size, frame: Size) -> Box:
    """The largest box of ``inner``'s proportions that fits into ``frame``, centred."""
    scale = min(frame[0] / inner[0], frame[1] / inner[1])
    width, height = (max(1, min(frame[i], round(inner[i] * scale))) for i in (0, 1))
    return Box((frame[0] - width) // 2, (frame[1] - height) // 2, width, height)


def pad(image: Image.Image, frame: Size, fill: int | tuple[int, int, int]) -> Image.Image:
    """``image`` scaled to fit into ``frame`` undistorted, centred on ``fill``."""
    box = contained(image.size, frame)
    page = Image.new(image.mode, frame, fill)
    page.paste(image.resize((box.width, box.height), _SMOOTH), (box.left, box.top))
    return page


def cover(image: Image.Image, frame: Size) -> Image.Image:
    """``image`` scaled to fill ``frame`` undistorted; what stands over on two sides is cut off."""
    return image if image.size == frame else ImageOps.fit(image, frame, _SMOOTH)


def bounded(image: Image.Image, pixels: int) -> Image.Image:
    """``image``, scaled down where it has more than so many pixels."""
    scale = (pixels / (image.width * image.height)) ** 0.5
    return image if scale >= 1 else ImageOps.scale(image, scale, _SMOOTH)


def extended(image: Image.Image, frame: Size) -> Image.Image:
    """``image`` in the middle of a larger ``frame``, its edges drawn out to fill that; ``crop`` gives it back."""
    left, top = (frame[0] - image.width) // 2, (frame[1] - image.height) // 2
    margins = [(top, frame[1] - image.height - top), (left, frame[0] - image.width - left)]
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, margins + [(0, 0)] * (pixels.ndim - 2), mode="edge"))


def crop(image: Image.Image, size: Size) -> Image.Image:
    """The middle of ``image``."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def round_up(size: Size, multiple: int) -> Size:
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def read_size(data: bytes) -> Size:
    """Of an encoded picture, without decoding it."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def read_image(data: bytes) -> Image.Image:
    """RGB; what is transparent becomes white."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page


def read_mask(data: bytes) -> Image.Image:
    """L, 255 where the mask's alpha is zero: that is where OpenAI's masks allow changes."""
    alpha = Image.open(io.BytesIO(data)).convert("RGBA").getchannel("A")
    return alpha.point(lambda value: 255 if value == 0 else 0)


def encode(image: Image.Image, form: Format, compression: int) -> bytes:
    """``compression`` is OpenAI's output_compression: the quality of jpeg and webp, 0 to 100."""
    buffer = io.BytesIO()
    if form == "png":
        image.save(buffer, "PNG", compress_level=1)
    elif form == "jpeg":
        image.save(buffer, "JPEG", quality=max(1, min(compression, 95)))  # above 95 libjpeg only grows the file
    else:
        image.save(buffer, "WEBP", quality=compression)
    return buffer.getvalue()
