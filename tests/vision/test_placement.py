"""Where models live: the choice for a GPU of a size, offloading, and text encoders in one byte per weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import KolorsPipeline
from quintet_common.engine_args import Placement
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_vision.backends import diffusers, placement
from quintet_vision.backends.base import Item
from quintet_vision.backends.diffusers import DiffusersBackend
from quintet_vision.backends.int8 import Int8Linear, quantise
from quintet_vision.backends.placement import choose, fitting, place
from quintet_vision.protocol import Draw
from torch import nn

KOLORS = {"unet": 5_200_000_000, "text_encoder": 12_400_000_000, "vae": 170_000_000}
"""Bytes in two-byte types."""


@pytest.mark.parametrize(
    ("gigabytes", "chosen"), [(80, "full"), (24, "full"), (16, "int8"), (12, "offload"), (8, "offload"), (6, "layers")]
)
def test_kolors_on_gpus_of_all_sizes(gigabytes: int, chosen: str) -> None:
    assert fitting(KOLORS, gigabytes * 10**9) == chosen


@pytest.mark.parametrize(
    ("memory", "expected"), [({0: "24GB"}, 24 * 10**9), ({0: "1GiB", "cpu": "9GB"}, 1 << 30), ({1: "1GB"}, 777)]
)
def test_the_room_is_what_memory_says_or_what_is_free(
    memory: dict[int | str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (777, 999))
    rooms: list[int] = []
    monkeypatch.setattr(placement, "fitting", lambda _, room: rooms.append(room) or "full")
    monkeypatch.setattr(placement, "_sizes", lambda _: {})
    choose(ModelSpec(id="k", kind="image", path="/k", memory=memory), "auto", torch.device("cuda:0"), None)
    assert rooms == [expected]


@pytest.mark.parametrize(
    ("way", "memory", "reason"), [("offload", {}, "needs a GPU"), ("auto", {0: "lots"}, "no amount of memory")]
)
def test_what_cannot_be_is_said(way: Placement, memory: dict[int | str, str], reason: str) -> None:
    spec = ModelSpec(id="k", kind="image", path="/k", memory=memory)
    with pytest.raises(LoadError, match=reason):
        choose(spec, way, torch.device("cuda" if memory else "cpu"), SimpleNamespace(components={}))


@pytest.fixture
def loaded(kolors_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DiffusersBackend]:
    """A tiny Kolors, placed in one of the ways; the CPU stands for the GPU, with accelerate's hooks as they are."""

    def load(way: str) -> DiffusersBackend:
        monkeypatch.setattr(diffusers, "choose", lambda *_: way)
        args = {"steps": 2, "size": "64x64"}
        spec = ModelSpec(id="k", kind="image", path=str(kolors_folder), dtype="float32", engine_args=args)
        return DiffusersBackend(spec, lambda *_: None)

    return load


def drawn(backend: DiffusersBackend) -> Any:
    (picture,) = backend.draw(backend.plan(Draw(prompt="x")), [Item("a cat", "", 1, (64, 64))], lambda *_: ())
    return np.asarray(picture, dtype=int)


def test_offloaded_models_draw_what_int8_draws(loaded: Callable[[str], DiffusersBackend]) -> None:
    exact, small = drawn(loaded("full")), drawn(loaded("int8"))
    assert 0 < np.abs(exact - small).max() < 40
    backend = loaded("offload")
    for _ in range(2):  # the hooks have to be there again
        assert (drawn(backend) == small).all()
        assert all(hasattr(part, "_hf_hook") for part in placement.parts(backend._pipe).values())


def kinds_of_device(pipe: Any) -> set[str]:
    return {weight.device.type for part in placement.parts(pipe).values() for weight in part.parameters()}


def test_layers_are_nowhere_until_they_work(
    loaded: Callable[[str], DiffusersBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    def place_by_layers(pipe: Any, device: torch.device, way: placement.Placement) -> None:
        place(pipe, device, way)
        for part in placement.parts(pipe).values():
            for module in part.modules():
                for hook in getattr(getattr(module, "_hf_hook", None), "hooks", [getattr(module, "_hf_hook", None)]):
                    if hasattr(hook, "execution_device"):  # diffusers numbers devices, and a CPU has no number
                        hook.execution_device = device

    small = drawn(loaded("int8"))
    monkeypatch.setattr(diffusers, "place", place_by_layers)
    backend = loaded("layers")
    assert kinds_of_device(backend._pipe) == {"meta"}
    seen: set[str] = set()
    hook = backend._pipe.unet.conv_in.register_forward_hook(lambda layer, *_: seen.add(layer.weight.device.type))
    for _ in range(2):
        assert (drawn(backend) == small).all()
        assert kinds_of_device(backend._pipe) == {"meta"}
    hook.remove()
    assert seen == {"meta"}  # gone again by the time that its result is there


def test_a_cached_prompt_leaves_the_text_encoder_where_it_is(loaded: Callable[[str], DiffusersBackend]) -> None:
    backend = loaded("offload")
    drawn(backend)
    runs: list[int] = []
    backend._pipe.text_encoder.register_forward_hook(lambda *_: runs.append(1))
    drawn(backend)
    assert not runs


def test_int8_layers_are_half_as_large_and_nearly_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 64, bias=False)).bfloat16()
    x = torch.randn(32, 256, dtype=torch.bfloat16)
    expected = model(x).float()
    before = sum(each.nbytes for each in model.state_dict().values())
    quantise(model)
    assert isinstance(model[0], Int8Linear)
    assert sum(each.nbytes for each in model.state_dict().values()) < 0.55 * before
    got = model(x)
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.float().flatten(), expected.flatten(), 0) > 0.999


def test_only_text_encoders_are_quantised(kolors_folder: Path) -> None:
    pipe = KolorsPipeline.from_pretrained(kolors_folder)
    place(pipe, torch.device("cpu"), "int8")
    kinds = {name: {type(each) for each in part.modules()} for name, part in placement.parts(pipe).items()}
    assert Int8Linear in kinds["text_encoder"]
    assert nn.Linear not in kinds["text_encoder"]
    assert Int8Linear not in kinds["unet"] | kinds["vae"]
