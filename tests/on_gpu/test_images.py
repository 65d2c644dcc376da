"""Images on a GPU: every placement draws what the CPU draws. Pretended GPUs will do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from quintet_common.models_yml import ModelSpec
from quintet_vision.backends.base import Item
from quintet_vision.backends.diffusers import DiffusersBackend
from quintet_vision.protocol import Draw
from vision.pictures import png
from vision.tiny_kolors import save_lora, save_tiny_kolors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
TOLERANCE = 2
"""Of 255, by which a pixel may differ from the CPU's."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "kolors"
    save_tiny_kolors(path)
    save_lora(path, path.parent / "style.safetensors", 1)
    return path


def backend(folder: Path, device: str, way: str = "full") -> DiffusersBackend:
    args = {"steps": 2, "size": "32x32", "placement": way, "loras": str(folder.parent)}
    spec = ModelSpec(id="k", kind="image", path=str(folder), dtype="float32", device=device, engine_args=args)
    return DiffusersBackend(spec, lambda *_: None)


def drawings(drawer: DiffusersBackend) -> list[Any]:
    """Two pictures at once, an edit, an edit under a mask, and one whose steps are seen; with a LoRA and without."""
    size = (32, 32)
    picture = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, 16, 32))
    two = [Item("a cat", "a dog", 1, size), Item("a red circle on blue", "", 2, size)]
    previews: list[Image.Image] = []

    def look(_step: int, render: Any) -> tuple[int, ...]:
        previews.extend(render([0]))
        return ()

    drawn = drawer.draw(drawer.plan(Draw(prompt="x")), two, lambda *_: ())
    plan = drawer.plan(Draw(prompt="x", image=png(*size), strength=0.7, loras={"style": 1.0}))
    drawn += drawer.draw(plan, [Item("a cat", "", 3, size, picture)], lambda *_: ())
    plan = drawer.plan(Draw(prompt="x", image=png(*size), mask=png(*size), strength=0.7))
    drawn += drawer.draw(plan, [Item("a cat", "", 3, size, picture, mask)], look)
    return [np.asarray(each.convert("RGB"), dtype=int) for each in [*drawn, *previews]]


def alike(mine: list[Any], theirs: list[Any]) -> None:
    assert len(mine) == len(theirs) == 5
    assert max(np.abs(left - right).max() for left, right in zip(mine, theirs, strict=True)) <= TOLERANCE


@pytest.fixture(scope="module")
def small(folder: Path) -> list[Any]:
    """What the CPU draws with text encoders in int8."""
    return drawings(backend(folder, "cpu", "int8"))


def test_pictures_are_those_of_the_cpu(folder: Path) -> None:
    alike(drawings(backend(folder, "cuda:0")), drawings(backend(folder, "cpu")))


@pytest.mark.parametrize("way", ["int8", "offload", "layers"])
def test_smaller_placements_draw_what_the_cpu_draws_with_int8(folder: Path, small: list[Any], way: str) -> None:
    drawer = backend(folder, "cuda:0", way)
    for _ in range(2):
        alike(drawings(drawer), small)


@two_gpus
def test_a_model_on_another_gpu_than_the_first(folder: Path, small: list[Any]) -> None:
    alike(drawings(backend(folder, "cuda:1", "offload")), small)
