"""The general backend on a tiny random Kolors: the real loading code, text to image, image to image, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_vision.backends.base import Interrupted, Item, Plan
from quintet_vision.backends.diffusers import DiffusersBackend
from quintet_vision.protocol import Draw

from .pictures import png
from .tiny_kolors import save_tiny_kolors

SIZE = (64, 64)


@pytest.fixture(scope="session")
def kolors_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "kolors"
    save_tiny_kolors(folder)
    return folder


@pytest.fixture(scope="session")
def reports() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="session")
def backend(kolors_folder: Path, reports: list[tuple[float, str]]) -> DiffusersBackend:
    spec = ModelSpec(
        id="kolors", kind="image", path=str(kolors_folder), dtype="float32", engine_args={"steps": 3, "size": "64x64"}
    )
    return DiffusersBackend(spec, lambda fraction, note: reports.append((fraction, note)))


def draw(backend: DiffusersBackend, request: Draw, *items: Item, on_step: Any = lambda *_: None) -> list[Image.Image]:
    return backend.draw(backend.plan(request), list(items), on_step)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image, dtype=np.int16)


def test_loading_reports_every_component(backend: DiffusersBackend, reports: list[tuple[float, str]]) -> None:
    assert {"loading unet", "loading vae", "loading text_encoder", "loading tokenizer"} <= {note for _, note in reports}
    assert [fraction for fraction, _ in reports] == sorted(fraction for fraction, _ in reports)
    assert backend.info["pipeline"] == "KolorsPipeline"
    assert backend.info["tasks"] == ["image-to-image", "text-to-image"]


def test_counting_tokens_is_not_done_by_the_tokenizer_that_draws(
    backend: DiffusersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Draw(prompt="a photo of a cat")
    counted = backend.usage(request, backend.plan(request)).text_tokens
    assert counted == len(backend._text.tokenizer(request.prompt)["input_ids"])
    monkeypatch.setattr(backend._text, "tokenizer", None)
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


def test_steps_can_be_previewed_and_interrupted(backend: DiffusersBackend) -> None:
    seen: list[tuple[int, tuple[int, int]]] = []

    def stop_at_two(step: int, render: Any) -> None:
        seen.append((step, render()[0].size))
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        draw(backend, Draw(prompt="x", steps=9), Item("x", "", 0, SIZE), on_step=stop_at_two)
    assert seen == [(1, (64, 64)), (2, (64, 64))]
    assert draw(backend, Draw(prompt="x"), Item("x", "", 0, SIZE))[0].size == (64, 64)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Draw(prompt="x", image=png(), mask=png(mode="RGBA")), "mask"),
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
        ({"device": "cuda:9"}, "no CUDA device"),
    ],
)
def test_a_model_that_cannot_load_says_why(kolors_folder: Path, change: dict[str, Any], reason: str) -> None:
    fields = {"id": "k", "kind": "image", "path": str(kolors_folder), **change}
    with pytest.raises(LoadError, match=reason):
        DiffusersBackend(ModelSpec(**fields), lambda *_: None)


def test_a_folder_without_a_pipeline_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="diffusers cannot load it"):
        DiffusersBackend(ModelSpec(id="k", kind="image", path=str(tmp_path)), lambda *_: None)


def test_unknown_engine_args_are_refused(kolors_folder: Path) -> None:
    spec = ModelSpec(id="k", kind="image", path=str(kolors_folder), engine_args={"stepz": 3})
    with pytest.raises(ValueError, match="stepz"):
        DiffusersBackend(spec, lambda *_: None)


def test_plans_of_like_requests_are_equal(backend: DiffusersBackend) -> None:
    one, two = backend.plan(Draw(prompt="a", seed=1)), backend.plan(Draw(prompt="b", negative_prompt="c", seed=2))
    assert one == two
    assert one == backend.plan(Draw(prompt="a", width=60, height=60))  # drawn at 64x64 too, then cropped
    assert isinstance(one, Plan)
    assert one != backend.plan(Draw(prompt="a", guidance=1.5))
