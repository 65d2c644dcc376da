"""What the image API and an image worker say to each other: one request in, pictures out.

For each request the worker emits one Accepted, one Started when its first picture is begun, any number of Previews and
one Finished per picture, in any order of pictures.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Task = Literal["text-to-image", "image-to-image", "inpainting"]
Format = Literal["png", "jpeg", "webp"]

MAX_IMAGES = 16
"""OpenAI's limit of pictures for an edit."""


class Draw(msgspec.Struct, kw_only=True):
    """One request. None leaves a choice to the model."""

    prompt: str
    negative_prompt: str = ""
    n: int = 1
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    effort: float = 1.0
    """What the model's own number of steps is multiplied by where ``steps`` is None."""
    guidance: float | None = None
    strength: float | None = None
    """How far an edit goes, above 0 (the picture as it is) to 1 (only noise is left of it)."""
    seed: int | None = None
    """Picture i of the request uses ``seed + i``."""
    image: bytes | None = None
    """The picture to start from: PNG or JPEG, checked and readable."""
    references: list[bytes] = []
    """Further pictures that the prompt speaks of, in their order, like ``image``."""
    mask: bytes | None = None
    """A PNG of the same size, transparent where the picture may change."""
    loras: dict[str, float] = {}
    """Names of the model's LoRAs, and how strongly each works."""
    format: Format = "png"
    compression: int = 100
    """Quality of jpeg and webp, 0 to 100."""
    previews: int = 0
    """Unfinished pictures to send on the way."""

    @property
    def task(self) -> Task:
        if self.image is None:
            return "text-to-image"
        return "image-to-image" if self.mask is None else "inpainting"


class Accepted(msgspec.Struct, tag="accepted"):
    """The request can be done and is queued; everything that can be refused has been."""

    width: int
    height: int
    native_width: int
    """Pixels that the model computes; they are scaled and cropped to ``width`` x ``height``."""
    native_height: int
    steps: int
    """Steps that each picture really takes."""
    text_tokens: int
    image_tokens: int
    output_tokens: int
    """Of one picture: the positions that the network computes."""
    revised_prompt: str | None = None


class Started(msgspec.Struct, tag="started"):
    queue_seconds: float


class Preview(msgspec.Struct, tag="preview"):
    index: int
    """Of the picture in the request, from 0."""
    number: int
    """Of the preview of this picture, from 0."""
    data: bytes


class Finished(msgspec.Struct, tag="finished"):
    index: int
    data: bytes
    seed: int
    batch_size: int = 0
    """Pictures that were drawn together; told by one of them, 0 by the others."""


Event = Accepted | Started | Preview | Finished
