"""Pictures for tests."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageDraw


def png(width: int = 96, height: int = 64, colour: str = "red", mode: str = "RGB", form: str = "PNG") -> bytes:
    """A filled ellipse on white."""
    image = Image.new(mode, (width, height), "white")
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=colour)
    return encoded(image, form)


def mask(width: int = 96, height: int = 64) -> bytes:
    """Transparent, so open to change, in its right half."""
    image = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (width // 2, 0, width, height))
    return encoded(image)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def decoded(text: str | None) -> Image.Image:
    """The picture of a ``b64_json``."""
    assert text
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image
