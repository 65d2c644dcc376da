"""The general backend on a tiny random Kolors: the real loading code, text to image, image to image, and refusals."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    KolorsImg2ImgPipeline,
    KolorsPipeline,
)
from msgspec.structs import replace
from PIL import Image
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_vision.backends import rows
from quintet_vision.backends.base import Interrupted, Item, Plan
from quintet_vision.backends.diffusers import DiffusersBackend
from quintet_vision.protocol import Draw
from safetensors.torch import load_file

from .pictures import mask, png

SIZE = (64, 64)


@pytest.fixture(scope="session")
def reports() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="session")
def backend(kolors_folder: Path, reports: list[tuple[float, str]]) -> DiffusersBackend:
    spec = ModelSpec(
        id="kolors", kind="image", path=str(kolors_folder), dtype="float32", engine_args={"steps": 3, "size": "64x64"}
    )
    return DiffusersBackend(spec, lambda fraction, note: reports.append((fraction, note)))


def draw(backend: DiffusersBackend, request: Draw, *items: Item, on_step: Any = lambda *_: ()) -> list[Image.Image]:
    return backend.draw(backend.plan(request), list(items), on_step)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image, dtype=np.int16)


def test_loading_reports_every_component(backend: DiffusersBackend, reports: list[tuple[float, str]]) -> None:
    assert {"loading unet", "loading vae", "loading text_encoder", "loading tokenizer"} <= {note for _, note in reports}
    assert [fraction for fraction, _ in reports] == sorted(fraction for fraction, _ in reports)
    assert backend.info["pipeline"] == "KolorsPipeline"
    assert backend.info["tasks"] == ["image-to-image", "inpainting", "text-to-image"]


def test_counting_tokens_is_not_done_by_the_tokenizer_that_draws(
    backend: DiffusersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Draw(prompt="a photo of a cat")
    counted = backend.usage(request, backend.plan(request)).text_tokens
    assert counted == len(backend._pipe.tokenizer(request.prompt)["input_ids"])
    monkeypatch.setattr(backend._pipe, "tokenizer", None)
    assert backend.usage(request, backend.plan(request)).text_tokens == counted


def test_a_seed_gives_the_same_picture_alone_and_merged(backend: DiffusersBackend) -> None:
    request = Draw(prompt="")
    items = [Item("a cat", "", 1, SIZE), Item("一只狗", "blurred", 2, SIZE), Item("red", "", 3, SIZE)]
    merged = draw(backend, request, *items)
    for item, together in zip(items, merged, strict=True):
        (alone,) = draw(backend, request, item)
        assert np.abs(pixels(alone) - pixels(together)).max() <= 2
    assert np.abs(pixels(merged[0]) - pixels(merged[1])).max() > 10


def test_a_size_the_autoencoder_cannot_do_is_rounded_up_and_cropped(backend: DiffusersBackend) -> None:
    plan = backend.plan(Draw(prompt="x", width=70, height=50))
    assert (plan.size, plan.native) == ((70, 50), (72, 56))
    assert draw(backend, Draw(prompt="x", width=70, height=50), Item("x", "", 0, (70, 50)))[0].size == (70, 50)


def test_image_to_image_starts_from_the_picture(backend: DiffusersBackend) -> None:
    request = Draw(prompt="x", image=png(96, 64), steps=10, strength=0.1)
    plan = backend.plan(request)
    assert (plan.size, plan.steps_taken) == ((96, 64), 1)
    red, blue = (Item("x", "", 0, (96, 64), Image.new("RGB", (96, 64), colour)) for colour in ("red", "blue"))
    of_red, of_blue = draw(backend, request, red, blue)
    assert of_red.size == (96, 64)
    assert np.abs(pixels(of_red) - pixels(of_blue)).max() > 5


def bare(kolors_folder: Path, kind: Any, **call: Any) -> Any:
    """What diffusers alone draws: its own pipeline, without anything of ours."""
    pipe = kind.from_pretrained(kolors_folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    return pixels(pipe("一只猫 a photo", guidance_scale=5.0, generator=generator, **call).images[0])


def test_pictures_are_those_of_the_bare_pipeline(backend: DiffusersBackend, kolors_folder: Path) -> None:
    item = Item("一只猫 a photo", "blurred", 7, SIZE)
    (ours,) = draw(backend, Draw(prompt="x", width=64, height=64, steps=3), item)
    call = {"negative_prompt": "blurred", "width": 64, "height": 64, "num_inference_steps": 3}
    assert (pixels(ours) == bare(kolors_folder, KolorsPipeline, **call)).all()


def test_edits_are_those_of_the_bare_pipeline(backend: DiffusersBackend, kolors_folder: Path) -> None:
    picture = Image.open(io.BytesIO(png(64, 64))).convert("RGB")
    (ours,) = draw(
        backend,
        Draw(prompt="x", image=png(64, 64), steps=5, strength=0.6),
        Item("一只猫 a photo", "", 7, SIZE, picture),
    )
    call = {"negative_prompt": "", "image": picture, "num_inference_steps": 5, "strength": 0.6}
    assert (pixels(ours) == bare(kolors_folder, KolorsImg2ImgPipeline, **call)).all()


def half_mask(size: tuple[int, int]) -> Image.Image:
    """Open to change in its right half."""
    half = Image.new("L", size, 0)
    half.paste(255, (size[0] // 2, 0, *size))
    return half


def test_a_mask_on_a_family_without_inpainting_keeps_every_pixel_outside(backend: DiffusersBackend) -> None:
    size = (100, 70)  # neither a multiple of the autoencoder's 8 nor square
    request = Draw(prompt="x", image=png(*size), mask=mask(*size), steps=6)
    own = Image.open(io.BytesIO(png(*size))).convert("RGB")
    items = [Item("a cat", "", 1, size, own, half_mask(size)), Item("red", "", 2, size, own, half_mask(size))]
    one, two = (pixels(picture) for picture in draw(backend, request, *items))
    assert (one[:, :50] == pixels(own)[:, :50]).all()
    assert np.abs(one[:, 55:] - pixels(own)[:, 55:]).max() > 20
    assert np.abs(one[:, 55:] - two[:, 55:]).max() > 5
    (alone,) = draw(backend, request, items[1])
    assert np.abs(pixels(alone) - two).max() <= 2


def test_what_a_mask_keeps_is_there_in_every_step(backend: DiffusersBackend) -> None:
    """The open part must grow out of the picture around it: late in the path, the closed part of the latents is the
    picture again."""
    own = Image.new("RGB", SIZE, "red")
    seen: list[Image.Image] = []
    request = Draw(prompt="x", image=png(*SIZE), mask=mask(*SIZE), steps=6)
    nothing = Image.new("L", SIZE, 0)  # nothing may change
    item = Item("a cat", "", 1, SIZE, own, nothing)
    backend.draw(backend.plan(request), [item], lambda _, render: seen.extend(render([0])) or ())
    through = decoded_again(backend, own)
    assert np.abs(pixels(seen[-1]) - through).max() <= 1
    assert np.abs(pixels(seen[0]) - through).max() > 20


def decoded_again(backend: DiffusersBackend, image: Image.Image) -> Any:
    """``image`` through the autoencoder and back, with the noise that seed 1 draws in it."""
    vae, processor = backend._pipe.vae, backend._pipe.image_processor
    with torch.inference_mode():
        latents = vae.encode(processor.preprocess(image)).latent_dist.sample(torch.Generator().manual_seed(1))
        return pixels(processor.postprocess(vae.decode(latents).sample)[0])


def test_large_pictures_are_decoded_in_tiles_and_the_zlai_page_gets_its_size(backend: DiffusersBackend) -> None:
    vae = backend._pipe.vae
    assert backend.plan(Draw(prompt="x", width=1792, height=1024)).size == (1792, 1024)
    request = Draw(prompt="x", width=448, height=256, steps=1)  # as wide, and large for a model of this size
    (large,) = draw(backend, request, Item("x", "", 0, (448, 256)))
    assert large.size == (448, 256)
    assert vae.use_tiling
    draw(backend, Draw(prompt="x"), Item("x", "", 0, SIZE))
    assert (vae.use_tiling, vae.use_slicing) == (False, False)
    draw(backend, Draw(prompt="x"), *[Item("x", "", seed, SIZE) for seed in (1, 2)])
    assert vae.use_slicing


def test_steps_can_be_previewed_and_interrupted(backend: DiffusersBackend) -> None:
    seen: list[tuple[int, tuple[int, int]]] = []

    def stop_at_two(step: int, render: Any) -> tuple[int, ...]:
        seen.append((step, render([0])[0].size))
        if step == 2:
            raise Interrupted
        return ()

    with pytest.raises(Interrupted):
        draw(backend, Draw(prompt="x", steps=9), Item("x", "", 0, SIZE), on_step=stop_at_two)
    assert seen == [(1, (64, 64)), (2, (64, 64))]
    assert draw(backend, Draw(prompt="x"), Item("x", "", 0, SIZE))[0].size == (64, 64)


@pytest.mark.parametrize("solver", [DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler])
@pytest.mark.parametrize("masked", [False, True])
def test_solvers_with_a_memory_go_on_when_neighbours_leave(
    backend: DiffusersBackend, solver: Any, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pipe in backend._pipes.values():
        monkeypatch.setattr(pipe, "scheduler", solver.from_config(pipe.scheduler.config))
    own = Image.linear_gradient("L").convert("RGB").resize(SIZE)
    sent = {"image": png(*SIZE), "mask": mask(*SIZE)} if masked else {}
    items = [Item("a cat", "", seed, SIZE, *((own, half_mask(SIZE)) if masked else ())) for seed in range(3)]
    whole = draw(backend, Draw(prompt="x", steps=8, **sent), *items)
    some = draw(backend, Draw(prompt="x", steps=8, **sent), *items, on_step=lambda step, _: [0] if step == 2 else ())
    for place in (1, 2):
        assert np.abs(pixels(some[place]) - pixels(whole[place])).max() <= 1
    assert np.abs(pixels(some[0]) - pixels(whole[0])).max() > 5


@pytest.mark.parametrize("change", ["network", "input"])
def test_networks_whose_inputs_are_not_known_go_on_with_all_pictures(
    backend: DiffusersBackend, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "network":
        monkeypatch.delitem(rows._PER_PICTURE, "UNet2DConditionModel")
    else:
        known = rows._PER_PICTURE["UNet2DConditionModel"] - {"added_cond_kwargs"}
        monkeypatch.setitem(rows._PER_PICTURE, "UNet2DConditionModel", known)
    seen: list[int] = []
    hook = backend._pipe.unet.register_forward_hook(lambda *call: seen.append(len(call[2][0])))
    items = [Item("a cat", "", seed, SIZE) for seed in range(2)]
    draw(backend, Draw(prompt="x"), *items, on_step=lambda *_: [0])
    hook.remove()
    assert seen == [4, 4, 4]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Draw(prompt="x", loras={"ghost": 1.0}), "lora"),
        (Draw(prompt="x", negative_prompt="y", guidance=1.0), "negative_prompt"),
        (Draw(prompt="x", width=8, height=8), "size"),
        (Draw(prompt="x", width=4097, height=64), "size"),
        (Draw(prompt="x", steps=151), "num_inference_steps"),
        (Draw(prompt="x", image=png(), steps=3, strength=0.1), "strength"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(backend: DiffusersBackend, request_: Draw, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        backend.plan(request_)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "/nowhere/kolors"}, "no such folder"),
        ({"engine": "vllm"}, "engine 'vllm'"),
        ({"device": "cuda:9"}, "there is no CUDA device here"),
        ({"engine_args": {"vae_tiling": "yes"}}, "vae_tiling: 'yes' is not one of true, false, auto"),
        ({"engine_args": {"pickled_weights": "yes"}}, "pickled_weights: expected true or false, got text"),
    ],
)
def test_a_model_that_cannot_load_says_why(kolors_folder: Path, change: dict[str, Any], reason: str) -> None:
    fields = {"id": "k", "kind": "image", "path": str(kolors_folder), **change}
    with pytest.raises(LoadError, match=reason):
        DiffusersBackend(ModelSpec(**fields), lambda *_: None)


def test_a_folder_without_a_pipeline_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="diffusers cannot load it"):
        DiffusersBackend(ModelSpec(id="k", kind="image", path=str(tmp_path)), lambda *_: None)


def test_pickles_are_not_read_unless_the_entry_says_so(
    kolors_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(kolors_folder, tmp_path / "kolors"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    spec = ModelSpec(id="k", kind="image", path=str(folder), dtype="float32", engine_args={"size": "64x64"})
    with pytest.raises(LoadError, match=r"no \*\.safetensors.*\{pickled_weights: true\}"):
        DiffusersBackend(spec, lambda *_: None)
    allowed = replace(spec, engine_args={"pickled_weights": True, **spec.engine_args})
    DiffusersBackend(allowed, lambda *_: None)
    assert "k: pickled_weights is on" in caplog.text


def test_unknown_engine_args_are_refused(kolors_folder: Path) -> None:
    spec = ModelSpec(id="k", kind="image", path=str(kolors_folder), engine_args={"stepz": 3})
    with pytest.raises(LoadError, match="unknown key"):
        DiffusersBackend(spec, lambda *_: None)


def test_plans_of_like_requests_are_equal(backend: DiffusersBackend) -> None:
    one, two = backend.plan(Draw(prompt="a", seed=1)), backend.plan(Draw(prompt="b", negative_prompt="c", seed=2))
    assert one == two
    assert one == backend.plan(Draw(prompt="a", width=60, height=60))  # drawn at 64x64 too, then cropped
    assert isinstance(one, Plan)
    assert one != backend.plan(Draw(prompt="a", guidance=1.5))
