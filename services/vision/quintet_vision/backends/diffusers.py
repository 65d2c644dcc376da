"""Any folder that diffusers can load: Kolors, SDXL, SD3, FLUX, Qwen-Image, Z-Image … One set of weights for all tasks.

Sizes are rounded up to what the model's autoencoder can do and cropped back. A picture to edit is scaled to cover the
size, its overhang cut off.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from quintet_common.errors import bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report
from torch import Tensor

from quintet_vision.backends.base import (
    Defaults,
    Item,
    OnStep,
    Plan,
    Usage,
    checked_size,
    checked_steps,
    checked_strength,
    defaults_from,
    refuse_task,
)
from quintet_vision.backends.device import pick_device, pick_dtype, quiet_libraries
from quintet_vision.canvas import cover, crop, read_size, round_up
from quintet_vision.protocol import Draw, Task

_PATCH = 16
"""Pixels on a side of what one output token stands for: an autoencoder's factor of 8, patches of 2."""


class DiffusersBackend:
    def __init__(self, spec: ModelSpec, report: Report) -> None:
        if spec.engine not in ("auto", "diffusers"):
            raise LoadError(f"engine {spec.engine!r} does not run image models; use 'diffusers' or leave it out.")
        self._id = spec.id
        self._device = pick_device(spec.device)
        self._dtype = pick_dtype(spec.dtype, self._device)
        report(0.05, "importing diffusers")
        quiet_libraries()
        self._pipes = _load(spec.path, self._dtype, self._device, report)
        self._text = self._pipes["text-to-image"]
        self.tasks: frozenset[Task] = frozenset(self._pipes)
        self.max_batch = spec.max_batch or 4
        self._multiple = _multiple(self._text)
        side = _own_side(self._text)
        signature = inspect.signature(self._text.__call__).parameters
        self._defaults = defaults_from(
            spec,
            Defaults(
                size=(side, side),
                steps=_default(signature, "num_inference_steps", 30),
                guidance_scale=float(_default(signature, "guidance_scale", 5.0)),
                strength=0.6,
            ),
        )
        # A call changes a tokenizer (its padding, say), and that of the pipeline may be drawing at the time.
        self._counter = copy.deepcopy(getattr(self._text, "tokenizer", None))
        self._negative = "negative_prompt" in signature
        # Latents of a transformer are packed in ways of its own; those of a UNet are a picture that the VAE can decode.
        self.can_preview = hasattr(self._text, "unet") and "callback_on_step_end" in signature

    @property
    def info(self) -> dict[str, Any]:
        return {
            "engine": "diffusers",
            "pipeline": type(self._text).__name__,
            "device": str(self._device),
            "dtype": str(self._dtype).removeprefix("torch."),
            "tasks": sorted(self.tasks),
            "default_size": "{}x{}".format(*self._defaults.size),
            "default_steps": self._defaults.steps,
        }

    def plan(self, request: Draw) -> Plan:
        refuse_task(request, self.tasks, self._id)
        if request.negative_prompt and not self._negative:
            raise bad_request(f"The model {self._id!r} takes no negative prompt.", "negative_prompt")
        if request.previews and not self.can_preview:
            raise bad_request(f"The model {self._id!r} has no partial images.", "partial_images")
        size = checked_size(request, None if request.image is None else read_size(request.image), self._defaults)
        steps = checked_steps(request, self._defaults)
        return Plan(
            task=request.task,
            size=size,
            native=round_up(size, self._multiple),
            steps=steps,
            guidance=self._defaults.guidance_scale if request.guidance is None else request.guidance,
            strength=1.0 if request.image is None else checked_strength(request, steps, self._defaults.strength),
        )

    def usage(self, request: Draw, plan: Plan) -> Usage:
        words = request.prompt.split() if self._counter is None else self._counter(request.prompt)["input_ids"]
        positions = -(-plan.native[0] // _PATCH) * -(-plan.native[1] // _PATCH)
        return Usage(len(words), 0 if request.image is None else positions, positions)

    def revised_prompt(self, prompt: str) -> str | None:  # noqa: ARG002
        return None

    def draw(self, plan: Plan, items: list[Item], on_step: OnStep) -> list[Image.Image]:
        pipe = self._pipes[plan.task]
        inputs = self._inputs(plan, items)

        def callback(_: Any, index: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            on_step(index + 1, lambda: _cropped(items, _decoded(pipe, tensors["latents"])))
            return tensors

        if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
            inputs["callback_on_step_end"] = callback
        with torch.inference_mode():
            images = _cropped(items, pipe(**inputs).images)
        return [_keep(plan, item, image) for item, image in zip(items, images, strict=True)]

    def _inputs(self, plan: Plan, items: list[Item]) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            "prompt": [item.prompt for item in items],
            "num_inference_steps": plan.steps,
            "guidance_scale": plan.guidance,
            "generator": [torch.Generator().manual_seed(item.seed) for item in items],
        }
        if self._negative:
            inputs["negative_prompt"] = [item.negative_prompt for item in items]
        if plan.task == "text-to-image":
            inputs |= {"width": plan.native[0], "height": plan.native[1]}
        else:
            inputs["image"] = [cover(item.image, plan.native) for item in items if item.image is not None]
            inputs["strength"] = plan.strength
        if plan.task == "inpainting":
            inputs["mask_image"] = [cover(item.mask, plan.native) for item in items if item.mask is not None]
            inputs |= {"width": plan.native[0], "height": plan.native[1]}
        return inputs


def _load(path: str, dtype: torch.dtype, device: torch.device, report: Report) -> dict[Task, Any]:
    """The pipeline for each task that this kind of model has, all over the same weights."""
    from diffusers.pipelines.auto_pipeline import (
        AutoPipelineForImage2Image,
        AutoPipelineForInpainting,
        AutoPipelineForText2Image,
    )

    if path.startswith("/") and not Path(path).is_dir():
        raise LoadError(f"{path}: no such folder.")
    with _components_reported(report):
        try:
            text = AutoPipelineForText2Image.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError) as error:
            raise LoadError(f"{path}: diffusers cannot load it: {error}") from error
    report(0.9, f"moving to {device}")
    text.to(device)
    text.set_progress_bar_config(disable=True)
    pipes: dict[Task, Any] = {"text-to-image": text}
    others: list[tuple[Task, Any]] = [
        ("image-to-image", AutoPipelineForImage2Image),
        ("inpainting", AutoPipelineForInpainting),
    ]
    for task, kind in others:
        try:
            pipes[task] = kind.from_pipe(text)
        except ValueError:  # diffusers has no such pipeline for this family
            continue
        pipes[task].set_progress_bar_config(disable=True)
    return pipes


@contextmanager
def _components_reported(report: Report) -> Iterator[None]:
    """While diffusers loads a pipeline, turn its progress bar over the components into reports."""
    from diffusers.utils import logging

    bar = logging.tqdm

    def reporting(items: Any, *_: Any, **__: Any) -> Iterator[Any]:
        parts = list(items)
        for number, part in enumerate(parts):
            report(0.1 + 0.8 * number / len(parts), f"loading {part[0]}" if isinstance(part, tuple) else "loading")
            yield part

    logging.tqdm = reporting
    try:
        yield
    finally:
        logging.tqdm = bar


def _default(signature: Any, name: str, otherwise: Any) -> Any:
    value = signature[name].default if name in signature else None
    return value if isinstance(value, (int, float)) and value > 0 else otherwise


def _multiple(pipe: Any) -> int:
    """What widths and heights must be divisible by."""
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    return factor if hasattr(pipe, "unet") else 2 * factor


def _own_side(pipe: Any) -> int:
    """The side of the pictures that the model was trained on, in pixels."""
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    samples = getattr(pipe, "default_sample_size", None) or getattr(
        getattr(network, "config", None), "sample_size", None
    )
    return int(samples) * factor if isinstance(samples, int) else 1024


def _decoded(pipe: Any, latents: Tensor) -> list[Image.Image]:
    """Latents on their way, as the autoencoder sees them now."""
    with torch.inference_mode():
        scaled = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
        pixels = pipe.vae.decode(scaled, return_dict=False)[0]
    images: list[Image.Image] = pipe.image_processor.postprocess(pixels.detach(), output_type="pil")
    return images


def _cropped(items: list[Item], images: list[Image.Image]) -> list[Image.Image]:
    return [crop(image, item.size) for item, image in zip(items, images, strict=True)]


def _keep(plan: Plan, item: Item, drawn: Image.Image) -> Image.Image:
    """Under a mask, the client's own pixels where nothing may change."""
    if item.mask is None or item.image is None:
        return drawn
    own, mask = (crop(cover(each, plan.native), item.size) for each in (item.image, item.mask))
    return Image.composite(drawn, own, mask)
