"""Pipelines that edit as the prompt says draw what diffusers draws with them, from one picture or several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_vision.backends.base import Item
from quintet_vision.backends.diffusers import DiffusersBackend
from quintet_vision.backends.qwen_pictures import PictureProcessor
from quintet_vision.protocol import Draw

from .pictures import png
from .tiny_editors import EDITORS, save_editor

SIZE = (64, 64)
SEVERAL = ("qwen-image-edit-plus", "flux2-klein")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """diffusers scales what is edited to a megapixel, which costs seconds even with tiny networks."""
    patch = pytest.MonkeyPatch()
    patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(64, 64)])
    patch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
    patch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 64 * 64)
    own = pipeline_qwenimage_edit.calculate_dimensions
    patch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _, ratio: own(64 * 64, ratio))
    yield
    patch.undo()


@pytest.fixture(scope="module", params=EDITORS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("editors") / family
    save_editor(family, folder)
    return folder


@pytest.fixture(scope="module")
def backend(family: str, folder: Path, small: None) -> DiffusersBackend:  # noqa: ARG001
    args = {"steps": 3, "size": "64x64"}
    spec = ModelSpec(id=family, kind="image", path=str(folder), dtype="float32", engine_args=args)
    return DiffusersBackend(spec, lambda *_: None)


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def edit(backend: DiffusersBackend, *items: Item, on_step: Any = lambda *_: ()) -> list[Any]:
    references = [png(*SIZE)] * len(items[0].references)
    request = Draw(prompt="x", image=png(*SIZE), references=references)
    return [np.asarray(each, dtype=int) for each in backend.draw(backend.plan(request), list(items), on_step)]


def bare(backend: DiffusersBackend, folder: Path, image: Any) -> Any:
    """What diffusers alone draws, with nothing of ours but the processor without torchvision."""
    kind = getattr(diffusers, backend.info["pipeline"])
    own = backend._pipe.components.get("processor")
    assert own is None or isinstance(own, PictureProcessor)
    pipe = kind.from_pretrained(folder, **({} if own is None else {"processor": own}))
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"negative_prompt": ""} if own is not None else {}
    if backend.info["pipeline"] == "FluxKontextPipeline":
        call["max_area"] = 64 * 64
    generator = torch.Generator().manual_seed(7)
    drawn = pipe(image, prompt="a red cat", width=64, height=64, num_inference_steps=3, generator=generator, **call)
    return np.asarray(drawn.images[0], dtype=int)


def test_an_edit_is_that_of_the_bare_pipeline(backend: DiffusersBackend, family: str, folder: Path) -> None:
    several = family in SEVERAL
    own = picture(1)
    more = (picture(2), picture(3, (96, 64))) if several else ()
    (ours,) = edit(backend, Item("a red cat", "", 7, SIZE, own, references=more))
    theirs = bare(backend, folder, [own, *more] if several else own)
    assert theirs.std() > 5
    assert np.abs(ours - theirs).max() <= 1
    (other,) = edit(backend, Item("a red cat", "", 7, SIZE, picture(9), references=more))
    assert (ours != other).any()
    if several:
        (other,) = edit(backend, Item("a red cat", "", 7, SIZE, own, references=more[:1]))
        assert (ours != other).any()


def test_edits_share_a_batch_only_where_each_keeps_its_own_picture(backend: DiffusersBackend, family: str) -> None:
    plan = backend.plan(Draw(prompt="x", image=png(*SIZE)))
    assert plan.alone == (family in SEVERAL)
    assert plan == backend.plan(Draw(prompt="y", image=png(*SIZE, colour="blue")))
    if plan.alone:
        return
    items = [Item(prompt, "", seed, SIZE, picture(seed)) for seed, prompt in enumerate(("a cat", "a red dog", "blue"))]
    merged = edit(backend, *items)
    left = edit(backend, *items, on_step=lambda step, _: [0] if step == 1 else ())
    for place in (1, 2):
        (alone,) = edit(backend, items[place])
        assert np.abs(alone - merged[place]).max() <= 1
        assert np.abs(left[place] - merged[place]).max() <= 1


def test_a_picture_more_than_it_takes_is_refused_with_the_limit(backend: DiffusersBackend, family: str) -> None:
    most = 16 if family in SEVERAL else 1
    assert backend.info["max_images"] == most
    backend.plan(Draw(prompt="x", image=png(), references=[png()] * (most - 1)))
    with pytest.raises(ApiError, match=f"takes {most if most > 1 else 'one'}") as caught:
        backend.plan(Draw(prompt="x", image=png(), references=[png()] * most))
    assert (caught.value.status, caught.value.param) == (400, "image")


def test_an_edit_by_instruction_takes_all_steps_and_no_strength(backend: DiffusersBackend) -> None:
    assert backend.plan(Draw(prompt="x", image=png(), steps=1)).steps_taken == 1
    assert backend.plan(Draw(prompt="x", image=png(), steps=10)).steps_taken == 10
    steps: list[int] = []
    edit(backend, Item("a", "", 1, SIZE, picture(1)), on_step=lambda step, _: steps.append(step) or ())
    assert steps == [1, 2, 3]
    with pytest.raises(ApiError) as caught:
        backend.plan(Draw(prompt="x", image=png(), strength=0.5))
    assert caught.value.param == "strength"


def test_sizes_and_usage(backend: DiffusersBackend, family: str) -> None:
    request = Draw(prompt="x", image=png(100, 70), references=[png()] if family in SEVERAL else [])
    plan = backend.plan(request)
    assert plan.size == (100, 70)
    (drawn,) = backend.draw(plan, [Item("a cat", "", 1, plan.size, picture(1, (100, 70)))], lambda *_: ())
    assert drawn.size == (100, 70)
    usage = backend.usage(request, plan)
    assert usage.image_tokens == usage.output_tokens * (1 + len(request.references))


def test_some_draw_from_a_prompt_alone_and_others_only_edit(backend: DiffusersBackend, family: str) -> None:
    assert ("text-to-image" in backend.tasks) == (not family.startswith("qwen"))
    if "text-to-image" in backend.tasks:
        items = [Item("a cat", "", seed, SIZE) for seed in (1, 2)]
        one, two = backend.draw(backend.plan(Draw(prompt="x")), items, lambda *_: ())
        assert (np.asarray(one) != np.asarray(two)).any()
        return
    with pytest.raises(ApiError, match="does not do text-to-image"):
        backend.plan(Draw(prompt="x"))


@pytest.mark.parametrize("family", ["flux2-klein"], indirect=True)
@pytest.mark.parametrize("size", [(640, 70), (96, 40)])
def test_flux2_says_which_pictures_it_cannot_read(backend: DiffusersBackend, size: tuple[int, int]) -> None:
    with pytest.raises(ApiError, match="{}x{}".format(*size)) as caught:
        backend.plan(Draw(prompt="x", image=png(), references=[png(*size)]))
    assert caught.value.param == "image"
