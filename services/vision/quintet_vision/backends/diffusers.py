"""Any folder that diffusers can load: Kolors, SDXL, SD3, FLUX, Qwen-Image, Z-Image … One set of weights for all tasks.

Sizes are rounded up to what the model's autoencoder can do and cropped back. A picture to edit is scaled to cover the
answer's size, its overhang cut off.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from quintet_common.devices import pick_device
from quintet_common.engine_args import Diffusers
from quintet_common.errors import bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.sizes import parse_bytes
from quintet_common.worker.host import LoadError, Report, settings
from torch import Tensor

from quintet_vision.backends.base import (
    Defaults,
    Item,
    OnStep,
    Plan,
    Render,
    Usage,
    defaults_from,
    planned,
    refuse_loras,
)
from quintet_vision.backends.device import pick_dtype, quiet_libraries
from quintet_vision.backends.guidance import Guidance
from quintet_vision.backends.latents import Blend, decoded
from quintet_vision.backends.loading import for_tasks, load
from quintet_vision.backends.loras import Loras
from quintet_vision.backends.placement import choose, place
from quintet_vision.backends.prompts import PromptCache
from quintet_vision.backends.references import check_pictures, takes_a_list
from quintet_vision.backends.rows import Rows
from quintet_vision.canvas import Size, cover, crop, extended, round_up
from quintet_vision.protocol import MAX_IMAGES, Draw, Task

log = logging.getLogger("quintet.vision")

_PATCH = 16
"""Pixels on a side of what one output token stands for: an autoencoder's factor of 8, patches of 2."""

_LARGE = 2
"""From so many times the pixels that a model was trained on, its autoencoder works in tiles."""


class DiffusersBackend:
    def __init__(self, spec: ModelSpec, report: Report) -> None:
        if spec.engine not in ("auto", "diffusers"):
            raise LoadError(f"engine {spec.engine!r} does not run image models; use 'diffusers' or leave it out.")
        self._id = spec.id
        given = settings(spec, Diffusers)
        self._device = pick_device(spec)
        self._dtype = pick_dtype(spec.dtype, self._device)
        if given.pickled_weights:
            log.warning(
                "%s: pickled_weights is on: if its weights are pickles, plain tensors are read of them.", spec.id
            )
        report(0.05, "importing diffusers")
        quiet_libraries()
        self._pipe = load(spec.path, self._dtype, report, given.pickled_weights)
        self._signature = inspect.signature(self._pipe.__call__).parameters
        self._side = _own_side(self._pipe)
        self._multiple = _multiple(self._pipe)
        self._guidance = Guidance(self._pipe)
        self._defaults = defaults_from(given, self._own_defaults())
        self._tiling = given.vae_tiling
        self._prompts = PromptCache(parse_bytes(given.prompt_cache))
        self.max_batch = spec.max_batch or 4
        # A call changes a tokenizer (its padding, say), and that of the pipeline may be drawing at the time.
        self._counter = copy.deepcopy(getattr(self._pipe, "tokenizer", None))
        self._place(spec, given, report)
        self._warm_up(report)

    def _own_defaults(self) -> Defaults:
        steps = _default(self._signature, "num_inference_steps", 30)
        return Defaults((self._side, self._side), steps, self._guidance.default, strength=0.6)

    def _place(self, spec: ModelSpec, given: Diffusers, report: Report) -> None:
        """LoRAs first, since they join the weights; then where those live; then what draws with them."""
        self._loras = Loras(self._pipe, given.loras)
        self._placement = choose(spec, given.placement, self._device, self._pipe)
        report(0.9, f"moving to {self._device} ({self._placement})")
        place(self._pipe, self._device, self._placement)
        self._pipes = for_tasks(self._pipe)
        for pipe in set(self._pipes.values()):  # one may do several tasks
            self._prompts.attach(pipe)
        edit = self._pipes.get("image-to-image")
        self._blends = "inpainting" not in self._pipes and _can_blend(edit)
        if self._blends:
            self._pipes["inpainting"] = edit
        self.tasks: frozenset[Task] = frozenset(self._pipes)
        self._can_preview = self._steps_are_told(self._pipe) and hasattr(self._pipe, "vae")

    def _warm_up(self, report: Report) -> None:
        """Draw once, small on a CPU: what cannot draw is found now, and the first request pays for no kernel's start.

        Some families keep latents in ways that only their own pipeline can read: those have no previews.
        """
        report(0.95, "drawing a first picture")
        side = self._side if self._device.type == "cuda" else max(self._multiple, self._side // 4)
        size = round_up((side, side), self._multiple)
        picture = None if "text-to-image" in self.tasks else Image.new("RGB", size, "white")
        task: Task = "text-to-image" if picture is None else "image-to-image"

        def try_preview(step: int, render: Render) -> Collection[int]:
            if self._can_preview and step == 1:
                try:
                    render([0])
                except Exception as error:
                    log.info("%s has no partial images: %s", self._id, error)
                    self._can_preview = False
            return ()

        alone = picture is not None and takes_a_list(self._pipe)
        plan = Plan(task, size, size, steps=2, guidance=self._defaults.guidance_scale, strength=1.0, alone=alone)
        self.draw(plan, [Item("", "", 0, size, picture)], try_preview)

    @property
    def stats(self) -> dict[str, float]:
        cache = self._prompts
        return {
            "prompt_cache_hits_total": cache.hits,
            "prompt_cache_misses_total": cache.misses,
            "prompt_cache_bytes": cache.bytes,
        }

    @property
    def info(self) -> dict[str, Any]:
        return {
            "engine": "diffusers",
            "pipeline": type(self._pipe).__name__,
            "device": str(self._device),
            "dtype": str(self._dtype).removeprefix("torch."),
            "placement": self._placement,
            "tasks": sorted(self.tasks),
            "loras": self._loras.names,
            "max_images": MAX_IMAGES if takes_a_list(self._pipes.get("image-to-image")) else 1,
            "default_size": "{}x{}".format(*self._defaults.size),
            "default_steps": self._defaults.steps,
        }

    def plan(self, request: Draw) -> Plan:
        refuse_loras(request, self._id, self._loras.names)
        pipe = self._pipes.get(request.task)
        check_pictures(request, pipe, self._id)
        defaults = self._defaults
        if pipe is not None and "strength" not in self._parameters(request.task):
            if request.strength is not None:
                raise bad_request(
                    f"The model {self._id!r} takes neither strength nor input_fidelity: it edits as the prompt says.",
                    "strength",
                )
            defaults = replace(defaults, strength=1.0)  # edits by instruction go all the way
        plan = planned(request, self._id, self.tasks, defaults, lambda size: round_up(size, self._multiple))
        plan = replace(plan, alone=plan.task != "text-to-image" and takes_a_list(pipe))
        self._guidance.check(request, plan.guidance, self._id)
        if request.previews and not self._can_preview:
            raise bad_request(f"The model {self._id!r} has no partial images.", "partial_images")
        return plan

    def usage(self, request: Draw, plan: Plan) -> Usage:
        words = request.prompt.split() if self._counter is None else self._counter(request.prompt)["input_ids"]
        positions = -(-plan.native[0] // _PATCH) * -(-plan.native[1] // _PATCH)
        pictures = 0 if request.image is None else 1 + len(request.references)
        return Usage(len(words), pictures * positions, positions)

    def revised_prompt(self, prompt: str) -> str | None:  # noqa: ARG002
        return None

    def draw(self, plan: Plan, items: list[Item], on_step: OnStep) -> list[Image.Image]:
        pipe = self._pipes[plan.task]
        inputs = self._inputs(plan, items)
        rows = Rows(len(items))
        blend = None
        if plan.task == "inpainting" and self._blends:
            blend = Blend(pipe.scheduler, inputs.pop("mask_image"))

        def callback(_: Any, index: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if blend is not None:
                tensors["latents"] = blend.after_step(time, tensors["latents"])
            rows.drop(on_step(index + 1, lambda places: _previews(pipe, tensors["latents"], plan, items, places)))
            return tensors

        if self._steps_are_told(pipe):
            inputs["callback_on_step_end"] = callback
        self._loras.use(plan.loras)
        self._prompts.variant = plan.loras
        self._divide(plan.native, len(items))
        try:
            with (
                torch.inference_mode(),
                nullcontext() if blend is None else blend.listening(),
                rows.narrowing(pipe),
            ):
                images = _cropped(items, pipe(**inputs).images)
        finally:
            if self._placement == "offload":
                self._pipe.maybe_free_model_hooks()  # the relatives do not know of the hooks
        return [_keep(item, image) for item, image in zip(items, images, strict=True)]

    def _inputs(self, plan: Plan, items: list[Item]) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            "prompt": [item.prompt for item in items],
            "num_inference_steps": plan.steps,
            "generator": [torch.Generator().manual_seed(item.seed) for item in items],
            **self._guidance.inputs(plan.guidance, [item.negative_prompt for item in items]),
        }
        known = self._parameters(plan.task)
        if "width" in known:
            inputs |= {"width": plan.native[0], "height": plan.native[1]}
        if "max_area" in known:  # FLUX.1 Kontext would scale width and height to a megapixel
            inputs["max_area"] = plan.native[0] * plan.native[1]
        if plan.task != "text-to-image":
            inputs["image"] = _pictures(items, plan)
            if "strength" in known:
                inputs["strength"] = plan.strength
        if plan.task == "inpainting":
            inputs["mask_image"] = [_framed(item.mask, item, plan) for item in items]
        return inputs

    def _parameters(self, task: Task) -> Any:
        return inspect.signature(self._pipes[task].__call__).parameters

    def _steps_are_told(self, pipe: Any) -> bool:
        return "callback_on_step_end" in inspect.signature(pipe.__call__).parameters

    def _divide(self, size: Size, count: int) -> None:
        """Bound the autoencoder's memory: pictures one by one, and large ones in tiles."""
        vae: Any = getattr(self._pipe, "vae", None)
        own = self._side**2
        if not hasattr(vae, "enable_tiling"):
            return
        pixels = size[0] * size[1]
        tight = self._placement in ("offload", "layers")
        tiles = pixels > (own if tight else _LARGE * own) if self._tiling == "auto" else self._tiling
        (vae.enable_tiling if tiles else vae.disable_tiling)()
        (vae.enable_slicing if count * pixels > own else vae.disable_slicing)()


def _default(signature: Any, name: str, otherwise: Any) -> Any:
    value = signature[name].default if name in signature else None
    return value if isinstance(value, (int, float)) and value > 0 else otherwise


def _can_blend(pipe: Any) -> bool:
    """Whether masks can be had by blending: latents as a picture, and noise that the scheduler can add."""
    if pipe is None or not hasattr(pipe, "unet") or not hasattr(pipe.scheduler, "add_noise"):
        return False
    return {"strength", "callback_on_step_end"} <= set(inspect.signature(pipe.__call__).parameters)


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


def _previews(pipe: Any, latents: Tensor, plan: Plan, items: list[Item], places: Sequence[int]) -> list[Image.Image]:
    """The unfinished pictures at ``places``, as the autoencoder sees their latents now."""
    return _cropped([items[place] for place in places], decoded(pipe, latents[list(places)], plan.native))


def _cropped(items: list[Item], images: list[Image.Image]) -> list[Image.Image]:
    return [crop(image, item.size) for item, image in zip(items, images, strict=True)]


def _pictures(items: list[Item], plan: Plan) -> list[Image.Image]:
    """One for each item; or for the only item all that it has, as large as they came."""
    if plan.alone:
        return [picture for item in items for picture in (item.image, *item.references) if picture is not None]
    return [_framed(item.image, item, plan) for item in items]


def _framed(image: Image.Image | None, item: Item, plan: Plan) -> Image.Image:
    """A picture or mask of the client as the network computes it: a picture of the answer's size is not scaled."""
    assert image is not None
    return extended(cover(image, item.size), plan.native)


def _keep(item: Item, drawn: Image.Image) -> Image.Image:
    """Under a mask, the client's own pixels where nothing may change."""
    if item.mask is None or item.image is None:
        return drawn
    return Image.composite(drawn, cover(item.image, item.size), cover(item.mask, item.size))
