"""Linear layers in oneDNN's layout: the same products, the same pictures, and LoRAs on top of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from quintet_common.models_yml import ModelSpec
from quintet_common.packing import PackedLinear, pack
from quintet_vision.backends.base import Item
from quintet_vision.backends.diffusers import DiffusersBackend
from quintet_vision.protocol import Draw
from safetensors.torch import save_file
from torch import nn

from .tiny_families import save_tiny

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_packed_layers_compute_the_same(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96, bias=bias), nn.GELU(), nn.Linear(96, 7)).to(dtype)
    x = torch.randn(3, 5, 48, dtype=dtype)
    expected = model(x)
    pack(model)
    can = torch.backends.mkldnn.is_available()
    can = can and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert isinstance(model[0], PackedLinear) == can
    assert (model[0].weight.dtype, tuple(model[0].weight.shape)) == (dtype, (96, 48))
    assert torch.allclose(model(x), expected, atol=1e-5 if dtype == torch.float32 else 0.03)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "model"
    save_tiny("flux", folder)
    return folder


def loaded(folder: Path, **args: Any) -> DiffusersBackend:
    args = {"steps": 4, "size": "64x64", **args}
    spec = ModelSpec(id="flux", kind="image", path=str(folder), dtype="float32", engine_args=args)
    return DiffusersBackend(spec, lambda *_: None)


def drawn(backend: DiffusersBackend, **fields: Any) -> Any:
    request = Draw(prompt="x", **fields)
    (picture,) = backend.draw(backend.plan(request), [Item("a cat", "", 7, (64, 64))], lambda *_: ())
    return np.asarray(picture, dtype=int)


@needs_onednn
def test_a_packed_model_draws_what_the_bare_pipeline_draws(flux: Path) -> None:
    backend = loaded(flux)
    assert any(isinstance(each, PackedLinear) for each in backend._pipe.transformer.modules())
    pipe = FluxPipeline.from_pretrained(flux)
    pipe.set_progress_bar_config(disable=True)
    call = {"width": 64, "height": 64, "num_inference_steps": 4, "generator": torch.Generator().manual_seed(7)}
    bare = np.asarray(pipe("a cat", **call).images[0], dtype=int)
    assert bare.std() > 5
    assert np.abs(drawn(backend) - bare).max() <= 1


@needs_onednn
def test_a_lora_works_on_packed_layers(flux: Path, tmp_path: Path) -> None:
    pipe = FluxPipeline.from_pretrained(flux)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    )
    for name, weight in pipe.transformer.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, 0, 2.0)
    weights = get_peft_model_state_dict(pipe.transformer)
    save_file({f"transformer.{name}": weight for name, weight in weights.items()}, tmp_path / "ink.safetensors")
    backend = loaded(flux, loras=str(tmp_path))
    plain, inked = drawn(backend), drawn(backend, loras={"ink": 1.0})
    assert np.abs(plain - inked).max() > 3
    assert (drawn(backend) == plain).all()
    assert (drawn(backend, loras={"ink": 1.0}) == inked).all()
    pipe.set_progress_bar_config(disable=True)
    call = {"width": 64, "height": 64, "num_inference_steps": 4, "generator": torch.Generator().manual_seed(7)}
    assert np.abs(np.asarray(pipe("a cat", **call).images[0], dtype=int) - inked).max() <= 1
