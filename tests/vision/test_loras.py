"""LoRAs: found in a folder, chosen by request or by name of the model, refused where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_vision.backends.base import Item
from quintet_vision.backends.diffusers import DiffusersBackend
from quintet_vision.protocol import Draw
from safetensors.torch import save_file

from .tiny_kolors import save_lora

SIZE = (64, 64)


@pytest.fixture(scope="module")
def folder(kolors_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random LoRAs of the tiny Kolors: a file, and a folder as trainers write it."""
    folder = tmp_path_factory.mktemp("loras")
    (folder / "line.art").mkdir()
    save_lora(kolors_folder, folder / "ink.safetensors", seed=1)
    save_lora(kolors_folder, folder / "line.art" / "pytorch_lora_weights.safetensors", seed=2)
    return folder


def load(kolors_folder: Path, loras: Path) -> DiffusersBackend:
    args = {"steps": 2, "size": "64x64", "loras": str(loras)}
    spec = ModelSpec(id="k", kind="image", path=str(kolors_folder), dtype="float32", engine_args=args)
    return DiffusersBackend(spec, lambda *_: None)


@pytest.fixture(scope="module")
def backend(kolors_folder: Path, folder: Path) -> DiffusersBackend:
    return load(kolors_folder, folder)


def drawn(backend: DiffusersBackend, **loras: float) -> Any:
    request = Draw(prompt="x", loras=loras)
    (picture,) = backend.draw(backend.plan(request), [Item("a cat", "", 1, SIZE)], lambda *_: ())
    return np.asarray(picture, dtype=int)


def test_they_are_listed(backend: DiffusersBackend) -> None:
    assert backend.info["loras"] == ["ink", "line.art"]


def test_each_request_has_its_own(backend: DiffusersBackend, kolors_folder: Path) -> None:
    args = {"steps": 2, "size": "64x64"}
    spec = ModelSpec(id="k", kind="image", path=str(kolors_folder), dtype="float32", engine_args=args)
    bare = drawn(DiffusersBackend(spec, lambda *_: None))
    ink, lines = drawn(backend, ink=1.0), drawn(backend, **{"line.art": 1.0})
    assert np.abs(bare - ink).max() > 3
    assert np.abs(ink - lines).max() > 3
    assert np.abs(drawn(backend, ink=0.3) - ink).max() > 0
    assert np.abs(drawn(backend, ink=1.0, **{"line.art": 1.0}) - ink).max() > 0
    assert (drawn(backend) == bare).all()
    assert (drawn(backend, ink=1.0) == ink).all()


def test_requests_with_different_loras_do_not_share_a_batch(backend: DiffusersBackend) -> None:
    assert backend.plan(Draw(prompt="x", loras={"ink": 1.0})) != backend.plan(Draw(prompt="x"))


def test_one_that_is_not_there_is_refused_by_name(backend: DiffusersBackend) -> None:
    with pytest.raises(ApiError, match=r"'ghost'; it has ink, line\.art") as caught:
        backend.plan(Draw(prompt="x", loras={"ghost": 1.0}))
    assert (caught.value.status, caught.value.param) == (400, "lora")


def test_a_file_that_is_no_lora_of_this_model_is_a_load_error(kolors_folder: Path, tmp_path: Path) -> None:
    save_file({"unet.nothing.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(LoadError, match=r"odd\.safetensors"):
        load(kolors_folder, tmp_path)
    with pytest.raises(LoadError, match="no such folder"):
        load(kolors_folder, tmp_path / "missing")
