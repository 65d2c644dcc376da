"""Packed linear layers: the same answers, no second copy of the weights, and nothing touched that cannot be packed."""

from __future__ import annotations

import pytest
import torch
from quintet_chat.backends.packing import PackedLinear, pack
from torch import nn


class Odd(nn.Linear):
    """A layer of somebody else's, as quantisation brings."""


def model(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Sequential(nn.Linear(96, 48, bias=False)), Odd(48, 8)).to(
        dtype
    )


@pytest.fixture(autouse=True)
def _capable() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16")


@torch.inference_mode()
def test_a_packed_model_computes_the_same() -> None:
    plain, packed = model(), model()
    assert pack(packed) == 2
    assert [type(module) for module in (packed[0], packed[2][0], packed[3])] == [PackedLinear, PackedLinear, Odd]
    for shape in ((1, 64), (3, 5, 64), (40, 64)):
        inputs = torch.randn(shape).bfloat16()
        assert torch.allclose(packed(inputs).float(), plain(inputs).float(), atol=1e-2)


@torch.inference_mode()
def test_a_row_gives_the_same_bits_alone_as_among_others() -> None:
    packed = nn.Sequential(nn.Linear(1536, 256, bias=False)).bfloat16()
    pack(packed)
    rows = torch.randn(300, 1536).bfloat16()
    together = packed(rows)
    if not torch.equal(packed(rows[:40]), together[:40]):
        pytest.skip("on this CPU a matrix product's rows depend on how many there are")
    assert all(torch.equal(packed(rows[k : k + 1])[0], together[k]) for k in range(300))


def test_what_is_not_bfloat16_stays() -> None:
    whole = model(torch.float32)
    assert pack(whole) == 0
    assert type(whole[0]) is nn.Linear


def test_the_weights_are_held_once() -> None:
    packed = model()
    weight = packed[0].weight
    pack(packed)
    assert all(parameter is not weight for parameter in packed.parameters())
