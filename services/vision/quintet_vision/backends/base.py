"""What every family of image models offers the engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from PIL import Image
from quintet_common.engine_args import Drawing
from quintet_common.errors import ApiError, bad_request

from quintet_vision.canvas import Size, read_size
from quintet_vision.protocol import Draw, Task


class Interrupted(Exception):
    """Nobody wants the batch any more; raised out of a step by the callback."""


@dataclass(frozen=True)
class Plan:
    """How one request is drawn, with every choice made. Requests with equal plans can share a batch."""

    task: Task
    size: Size = field(compare=False)
    """Of the answer; pictures of a batch may differ in it."""
    native: Size
    """Of what the network computes."""
    steps: int
    guidance: float
    strength: float
    """1 for text-to-image."""
    loras: tuple[tuple[str, float], ...] = ()
    """Names and weights."""
    alone: bool = False
    """The model draws it in no company, not even in that of its equals."""

    @property
    def steps_taken(self) -> int:
        """An edit joins the path of ``steps`` part of the way."""
        return max(1, min(self.steps, int(self.steps * self.strength))) if self.task != "text-to-image" else self.steps


@dataclass(frozen=True)
class Usage:
    text_tokens: int
    image_tokens: int
    output_tokens: int


@dataclass
class Item:
    """One picture of a batch."""

    prompt: str
    negative_prompt: str
    seed: int
    size: Size
    """Of the answer."""
    image: Image.Image | None = None
    """RGB, as large as the client sent it."""
    mask: Image.Image | None = None
    """L, white where the picture may change; as large as ``image``."""
    references: tuple[Image.Image, ...] = ()
    """RGB: further pictures that the prompt speaks of."""


Render = Callable[[Sequence[int]], list[Image.Image]]
"""From places in a batch to the unfinished pictures there."""

OnStep = Callable[[int, Render], Collection[int]]
"""Called after each step with the number of steps done. It returns the places of pictures that nobody wants any more:
what is drawn there does not matter."""


class Backend(Protocol):
    """One loaded model. Called from the engine's one thread, ``plan`` and ``usage`` also from its reader thread."""

    tasks: frozenset[Task]
    max_batch: int

    @property
    def stats(self) -> dict[str, float]:
        """Gauges and counters of its own, named as worker Stats are."""

    @property
    def info(self) -> dict[str, Any]:
        """What ``/v1/models`` says of it."""

    def plan(self, request: Draw) -> Plan:
        """Raises ApiError 400 for what this model cannot do."""

    def usage(self, request: Draw, plan: Plan) -> Usage: ...

    def revised_prompt(self, prompt: str) -> str | None:
        """The prompt as the model reads it, where that differs."""

    def draw(self, plan: Plan, items: list[Item], on_step: OnStep) -> list[Image.Image]:
        """One picture of its ``size`` per item. An exception from ``on_step`` ends the drawing and passes through."""


@dataclass(frozen=True)
class Defaults:
    """A model's own choices; ``engine_args`` of models.yml may set each by its name."""

    size: Size
    steps: int
    guidance_scale: float
    strength: float
    max_pixels: int = 2048 * 2048
    max_steps: int = 150
    min_side: int = 16
    max_side: int = 4096


def defaults_from(args: Drawing, given: Defaults) -> Defaults:
    """``given`` with what ``engine_args`` says."""
    names = ("steps", "guidance_scale", "max_steps", "max_pixels")
    said: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.strength is not None:
        said["strength"] = min(1.0, args.strength)
    if args.size is not None:
        width, _, height = args.size.partition("x")
        said["size"] = (int(width), int(height))
    return replace(given, **said)


def planned(
    request: Draw, model: str, tasks: frozenset[Task], defaults: Defaults, native: Callable[[Size], Size]
) -> Plan:
    """What every family decides alike. ``native`` maps a size to that which the network computes for it.

    Raises ApiError 400 for what this model, or any, cannot do.
    """
    if request.task not in tasks:
        param = {"text-to-image": "model", "image-to-image": "image", "inpainting": "mask"}[request.task]
        raise bad_request(f"The model {model!r} does not do {request.task}.", param, "unsupported_task")
    size = _size(request, None if request.image is None else read_size(request.image), defaults)
    steps = _steps(request, defaults)
    # Under a mask all may change, and what may not is kept anyway.
    strength = 1.0 if request.task == "inpainting" else defaults.strength
    return Plan(
        task=request.task,
        size=size,
        native=native(size),
        steps=steps,
        guidance=defaults.guidance_scale if request.guidance is None else request.guidance,
        strength=_strength(request, steps, strength),
        loras=tuple(sorted(request.loras.items())),
    )


def _size(request: Draw, own: Size | None, defaults: Defaults) -> Size:
    """The answer's size: as asked for, else that of the picture to edit, else the model's. Raises ApiError 400."""
    if request.width is not None and request.height is not None:
        size = (request.width, request.height)
    elif own is not None:
        return _shrunk(own, defaults)
    else:
        return defaults.size
    if min(size) < defaults.min_side or max(size) > defaults.max_side or size[0] * size[1] > defaults.max_pixels:
        raise bad_request(
            f"Invalid size: {size[0]}x{size[1]}. Sides are {defaults.min_side} to {defaults.max_side} pixels, and the "
            f"picture at most {defaults.max_pixels / 1e6:.1f} million pixels.",
            "size",
            "invalid_value",
        )
    return size


def _shrunk(size: Size, defaults: Defaults) -> Size:
    """The nearest allowed size of the same proportions."""
    scale = min(1.0, defaults.max_side / max(size), (defaults.max_pixels / (size[0] * size[1])) ** 0.5)
    width, height = (max(defaults.min_side, int(side * scale)) for side in size)
    return width, height


def _steps(request: Draw, defaults: Defaults) -> int:
    steps = request.steps if request.steps is not None else max(1, round(defaults.steps * request.effort))
    if steps > defaults.max_steps:
        raise bad_request(
            f"num_inference_steps: this model takes 1 to {defaults.max_steps} steps.", "num_inference_steps"
        )
    return steps


def _strength(request: Draw, steps: int, default: float) -> float:
    if request.image is None:
        return 1.0
    strength = request.strength if request.strength is not None else default
    if int(steps * strength) < 1:
        raise bad_request(
            f"strength: {strength:g} of {steps} steps is less than one step, which would change nothing.", "strength"
        )
    return strength


def refuse_loras(request: Draw, model: str, known: Sequence[str]) -> None:
    """Raises ApiError 400 for a LoRA that the model does not have."""
    for name in request.loras:
        if name not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise bad_request(f"lora: the model {model!r} has no LoRA {name!r}; {there}.", "lora", "lora_not_found")


def out_of_memory(size: Size) -> ApiError:
    return ApiError(
        500, f"Not enough memory for a picture of {size[0]}x{size[1]}.", code="out_of_memory", param="size", retry=False
    )
