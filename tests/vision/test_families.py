"""One code for all families: tiny random models of each are loaded, drawn with, and edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_vision.backends.base import Item
from quintet_vision.backends.diffusers import DiffusersBackend
from quintet_vision.backends.placement import parts
from quintet_vision.protocol import Draw

from .pictures import mask, png
from .tiny_families import FAMILIES, save_tiny

SIZE = (64, 64)


@pytest.fixture(scope="module", params=FAMILIES)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusersBackend:
    folder: Path = tmp_path_factory.mktemp("families") / request.param
    save_tiny(request.param, folder)
    args = {"steps": 2, "size": "64x64"}
    spec = ModelSpec(id=request.param, kind="image", path=str(folder), dtype="float32", engine_args=args)
    return DiffusersBackend(spec, lambda *_: None)


def draw(backend: DiffusersBackend, request: Draw, *items: Item, on_step: Any = lambda *_: ()) -> list[Any]:
    pictures = backend.draw(backend.plan(request), list(items), on_step)
    return [np.asarray(picture, dtype=int) for picture in pictures]


def test_a_seed_gives_the_same_picture_alone_and_beside_a_longer_prompt(backend: DiffusersBackend) -> None:
    items = [Item("a cat", "", 1, SIZE), Item("photo of the blue dog a red cat", "", 2, SIZE)]
    merged = draw(backend, Draw(prompt="x"), *items)
    for item, together in zip(items, merged, strict=True):
        (alone,) = draw(backend, Draw(prompt="x"), item)
        assert np.abs(alone - together).max() <= 2
        assert alone.std() > 5


def test_prompts_and_seeds_matter(backend: DiffusersBackend) -> None:
    request = Draw(prompt="x", steps=4)
    prompts = draw(backend, request, Item("a cat", "", 1, SIZE), Item("photo of the red dog", "", 1, SIZE))
    assert np.abs(prompts[0] - prompts[1]).max() > 0
    seeds = draw(backend, request, Item("a cat", "", 1, SIZE), Item("a cat", "", 2, SIZE))
    assert np.abs(seeds[0] - seeds[1]).max() > 5


def test_the_last_preview_is_the_picture(backend: DiffusersBackend) -> None:
    """So latents are unpacked and scaled back as the family's own pipeline does it."""
    previews: list[Any] = []
    request = Draw(prompt="x", previews=1, width=80, height=48)
    item = Item("a cat", "", 1, (80, 48))
    (picture,) = draw(backend, request, item, on_step=lambda _, render: previews.extend(render([0])) or ())
    assert len(previews) == 2
    assert picture.shape == (48, 80, 3)
    assert np.abs(np.asarray(previews[-1], dtype=int) - picture).max() <= 1


def test_edits_and_masks(backend: DiffusersBackend) -> None:
    red = Image.new("RGB", SIZE, "red")
    half = Image.new("L", SIZE, 0)
    half.paste(255, (32, 0, 64, 64))
    whole = Draw(prompt="x", image=png(*SIZE), strength=0.6, steps=4)
    (edited, _) = draw(backend, whole, Item("a", "", 1, SIZE, red), Item("a cat", "", 2, SIZE, red))
    assert edited.shape == (64, 64, 3)
    (masked,) = draw(backend, Draw(prompt="x", image=png(*SIZE), mask=mask(*SIZE)), Item("a", "", 1, SIZE, red, half))
    assert (masked[:, :32] == (255, 0, 0)).all()
    assert np.abs(masked[:, 32:] - (255, 0, 0)).max() > 20


def test_all_tasks_hold_the_same_weights(backend: DiffusersBackend) -> None:
    def addresses(pipe: Any) -> set[int]:
        return {weight.data_ptr() for part in parts(pipe).values() for weight in part.parameters()}

    pipes = list(backend._pipes.values())
    assert len(pipes) == 3
    assert addresses(pipes[0]) == addresses(pipes[1]) == addresses(pipes[2])
    assert torch.is_inference_mode_enabled() is False


def test_a_negative_prompt_works_or_is_refused(backend: DiffusersBackend) -> None:
    request = Draw(prompt="x", negative_prompt="dog")
    if backend.info["pipeline"] == "FluxPipeline":  # its guidance is an input of the network, without a second run
        with pytest.raises(ApiError) as caught:
            backend.plan(request)
        assert caught.value.param == "negative_prompt"
        return
    if backend.info["pipeline"] == "ZImagePipeline":
        backend.plan(Draw(prompt="x", negative_prompt="dog", guidance=0.5))
    with pytest.raises(ApiError, match="above"):
        backend.plan(Draw(prompt="x", negative_prompt="dog", guidance=0.0))
    without, without_again, with_it = draw(
        backend, Draw(prompt="x", steps=4), *(Item("a cat", text, 1, SIZE) for text in ("", "", "photo of a red dog"))
    )
    assert np.abs(without.astype(int) - without_again).max() <= 2
    assert (without != with_it).any()


@pytest.mark.parametrize("masked", [False, True])
def test_pictures_that_nobody_wants_cost_nothing_and_change_nothing(backend: DiffusersBackend, masked: bool) -> None:
    picture = Image.linear_gradient("L").convert("RGB").resize(SIZE)
    half = Image.new("L", SIZE, 0)
    half.paste(255, (32, 0, 64, 64))
    sent = {"image": png(*SIZE), "mask": mask(*SIZE)} if masked else {}
    parts_ = (picture, half) if masked else ()
    prompts = ("a cat", "photo of the blue dog a red cat", "dog", "red")
    items = [Item(prompt, "", seed, SIZE, *parts_) for seed, prompt in enumerate(prompts)]
    request = Draw(prompt="x", steps=6, **sent)
    whole = draw(backend, request, *items)
    network: Any = getattr(backend._pipe, "unet", None) or backend._pipe.transformer
    rows: list[int] = []
    previews: list[Any] = []

    def leave(step: int, render: Any) -> list[int]:
        if step == 3:
            previews.extend(render([1, 3]))
        return {2: [0, 2], 4: [3]}.get(step, [])

    def count(_: Any, __: Any, output: Any) -> None:
        rows.append(len(output[0]))

    hook = network.register_forward_hook(count, prepend=True)
    try:
        some = draw(backend, request, *items, on_step=leave)
    finally:
        hook.remove()
    assert np.abs(some[1] - whole[1]).max() <= 1
    assert len(previews) == 2
    calls = len(rows) // 3
    ran = [set(rows[start : start + calls]) for start in (0, calls, 2 * calls)]
    assert [max(each) * 4 // max(rows) for each in ran] == [4, 2, 1]
    assert all(len(each) == 1 for each in ran)
    if not masked:
        assert np.ptp(some[0]) == 0  # not even decoded
