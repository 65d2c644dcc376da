"""A model that is packed as a whole: the same answers, and no second copy of the weights."""

from __future__ import annotations

import pytest
import torch
from quintet_chat.backends.packing import finish
from quintet_chat.engine.runner import UnsupportedModel
from quintet_common.packing import PackedLinear
from torch import nn


class Odd(nn.Linear):
    """A layer of somebody else's, as quantisation brings."""


def model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(96, 48, bias=False))
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), inner, Odd(48, 8)).to(dtype)


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if request.param == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16")
    assert isinstance(request.param, torch.dtype)
    return request.param


@torch.inference_mode()
def test_a_packed_model_computes_the_same(dtype: torch.dtype) -> None:
    plain, packed = model(dtype), model(dtype)
    finish(packed, lambda: None)
    assert [type(module) for module in (packed[0], packed[2][0], packed[3])] == [PackedLinear, PackedLinear, Odd]
    for shape in ((1, 64), (3, 5, 64), (40, 64)):
        inputs = torch.randn(shape).to(dtype)
        assert torch.allclose(packed(inputs), plain(inputs), atol=1e-5 if dtype == torch.float32 else 1e-2)


def test_the_weights_are_held_once(dtype: torch.dtype) -> None:
    packed = model(dtype)
    weight, odd = packed[0].weight, packed[3].weight.data_ptr()
    finish(packed, lambda: None)
    assert all(parameter is not weight for parameter in packed.parameters())
    assert packed[3].weight.data_ptr() != odd  # nothing is left in the mapped file


def test_a_model_that_does_not_run_over_them_keeps_its_layers(dtype: torch.dtype) -> None:
    def trial() -> None:
        raise UnsupportedModel("it takes its layers' weights")

    packed = model(dtype)
    layers = list(packed)
    finish(packed, trial)
    assert list(packed) == layers
    assert type(packed[2][0]) is nn.Linear
