"""Linear layers in oneDNN's layout: the same products, whatever runs beside, and a way back."""

from __future__ import annotations

import pytest
import torch
from quintet_common.packing import WIDE, PackedLinear, Product, can_be_packed, pack, put_back
from torch import nn

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="torch without oneDNN")
TYPES = [torch.float32]
if torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    TYPES.append(torch.bfloat16)


def network(dtype: torch.dtype, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96, bias=bias), nn.GELU(), nn.Linear(96, 7, bias=bias)).to(dtype).eval()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_packed_layers_compute_the_same_and_can_be_put_back(dtype: torch.dtype, bias: bool) -> None:
    model = network(dtype, bias)
    x = torch.randn(3, 5, 48, dtype=dtype)
    expected, plain = model(x), list(model)
    replaced = pack(model)
    assert len(replaced) == 2
    assert isinstance(model[0], PackedLinear)
    assert (model[0].weight.dtype, tuple(model[0].weight.shape)) == (dtype, (96, 48))
    assert torch.allclose(model(x), expected, atol=1e-5 if dtype == torch.float32 else 0.03)
    put_back(replaced)
    assert list(model) == plain


@pytest.mark.parametrize("dtype", TYPES)
@torch.inference_mode()
def test_products_of_one_input_are_those_of_each_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 32).to(dtype), nn.Linear(64, 16, bias=False).to(dtype)]
    x = torch.randn(4, 64, dtype=dtype)
    together = Product(layers)(x)
    assert torch.equal(together, torch.cat([Product([layer])(x) for layer in layers], -1))


@torch.inference_mode()
def test_a_single_row_has_the_bits_that_it_has_in_a_batch() -> None:
    torch.manual_seed(0)
    for dtype in TYPES:
        product = Product([nn.Linear(2 * WIDE, 64).to(dtype)])
        rows = torch.randn(5, 1, 2 * WIDE, dtype=dtype)
        assert torch.equal(product(rows[2:3]), product(rows)[2:3])


def test_only_plain_layers_that_are_wanted_are_packed() -> None:
    model = network(torch.float32)
    assert pack(model, wanted=lambda path: path.endswith("2"))[0][1] == "2"
    assert not isinstance(model[0], PackedLinear)
    model[0].register_forward_hook(lambda *_: None)
    assert not can_be_packed(model[0])
    assert not can_be_packed(nn.Linear(4, 4).half())
    assert not can_be_packed(nn.Linear(4, 4, device="meta"))
    assert not can_be_packed(nn.Conv1d(4, 4, 1))
