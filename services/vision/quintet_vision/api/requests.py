"""What clients may ask for: OpenAI's fields, and the usual ones beyond. Unknown fields are ignored, wishes that cannot
be met are refused by name."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from quintet_common.errors import bad_request

from quintet_vision.protocol import MAX_IMAGES, Draw, Format

_SIZE = re.compile(r"(\d{1,5})\s*[x×*]\s*(\d{1,5})", re.IGNORECASE)
_EFFORT = {"low": 0.5, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 3.0}
_FIDELITY = {"high": 0.4}
"""Strength of an edit that is to stay close to its picture."""


def _no_boolean(value: object) -> object:
    """A number in a form is text, so fields are not strict; but a boolean is a mistake, not 0 or 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a boolean")
    return value


Weight = Annotated[float, BeforeValidator(_no_boolean), Field(ge=-4, le=4, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=10)]
Integer = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean)]


class ImageRequest(BaseModel):
    """The fields that all three endpoints share."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, max_length=256)
    n: Count | None = None
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, or auto")
    response_format: Literal["b64_json", "url"] | None = None
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    output_format: Literal["png", "jpeg", "webp", "gif", "svg"] | None = None
    output_compression: Integer | None = Field(None, ge=0, le=100)
    seed: Integer | None = Field(None, ge=0, lt=2**63)
    negative_prompt: str | None = Field(None, max_length=32_000)
    num_inference_steps: Integer | None = Field(None, ge=1, le=1000)
    guidance_scale: Number | None = Field(None, ge=0, le=50, allow_inf_nan=False)
    lora: str | dict[str, Weight] | None = Field(None, description="a LoRA's name, or names with their weights")

    @field_validator("size")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None and value != "auto" and not _SIZE.fullmatch(value):
            raise ValueError("size is written as WIDTHxHEIGHT, like 1024x1024, or auto")
        return value

    @field_validator("lora", mode="before")
    @classmethod
    def _lora(cls, value: object) -> object:
        """In a multipart body everything is text."""
        if isinstance(value, str) and value.startswith("{"):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):  # the latter from thousands of brackets
                raise ValueError("lora is a name, or a JSON object of names and weights") from None
        return value

    @property
    def format(self) -> Format:
        """Raises ApiError 400 for the kinds that no model here makes."""
        form = self.output_format or "png"
        if form == "gif" or form == "svg":
            raise bad_request(f"output_format {form!r} is not supported: png, jpeg or webp.", "output_format")
        return form

    def draw(self, **more: Any) -> Draw:
        """The request as the worker takes it. Raises ApiError 400."""
        size = _SIZE.fullmatch(self.size or "")
        if self.format == "png" and self.output_compression not in (None, 100):
            raise bad_request("output_compression is for jpeg and webp; png loses nothing.", "output_compression")
        fields: dict[str, Any] = {
            "negative_prompt": self.negative_prompt or "",
            "n": self.n or 1,
            "width": int(size[1]) if size else None,
            "height": int(size[2]) if size else None,
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            "seed": self.seed,
            "loras": {self.lora: 1.0} if isinstance(self.lora, str) else self.lora or {},
            "format": self.format,
            "compression": 100 if self.output_compression is None else self.output_compression,
        }
        return Draw(**{**fields, **more})


class PromptRequest(ImageRequest):
    """Fields of generations and edits."""

    prompt: str = Field(min_length=1, max_length=32_000)
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: bool | None = None
    partial_images: Integer | None = Field(None, ge=0, le=3)
    complexity: Any = None
    svg: Any = None
    frame_count: Any = None
    frame_duration_ms: Any = None

    def draw(self, **more: Any) -> Draw:
        if self.background == "transparent":
            raise bad_request("background 'transparent' is not supported: pictures are opaque.", "background")
        for name in ("complexity", "svg", "frame_count", "frame_duration_ms"):
            if getattr(self, name) is not None:
                raise bad_request(f"{name} is not supported: it is for svg and gif output.", name)
        if self.partial_images and not self.stream:
            raise bad_request("partial_images needs stream: true.", "partial_images")
        if self.stream and self.response_format == "url":
            raise bad_request(
                "response_format 'url' does not go with stream: events carry b64_json.", "response_format"
            )
        return super().draw(
            prompt=self.prompt,
            effort=_EFFORT.get(self.quality or "auto", 1.0),
            previews=self.partial_images or 0,
            **more,
        )


class GenerationRequest(PromptRequest):
    style: Literal["vivid", "natural"] | None = None

    def draw(self, **more: Any) -> Draw:
        if self.style is not None:
            raise bad_request("style is not supported: say in the prompt how it should look.", "style")
        return super().draw(**more)


class EditRequest(PromptRequest):
    """The text fields of an edit; its files are beside it."""

    strength: Number | None = Field(None, gt=0, le=1)
    input_fidelity: Literal["high", "low"] | None = None

    def draw(self, **more: Any) -> Draw:
        strength = self.strength if self.strength is not None else _FIDELITY.get(self.input_fidelity or "low")
        return super().draw(strength=strength, **more)


class PictureAddress(BaseModel):
    """Where a picture is: one of the two."""

    image_url: str | None = None
    file_id: str | None = None


class AddressedEditRequest(EditRequest):
    """An edit as one JSON object."""

    images: list[PictureAddress] = Field(min_length=1, max_length=MAX_IMAGES)
    mask: PictureAddress | None = None
    markup: Any = None


class VariationRequest(ImageRequest):
    """The text fields of a variation: its picture is the only prompt."""

    strength: Number | None = Field(None, gt=0, le=1)

    def draw(self, **more: Any) -> Draw:
        return super().draw(prompt="", strength=self.strength, **more)
