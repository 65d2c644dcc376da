"""On what, and how precisely, a model runs where its entry leaves it open."""

from __future__ import annotations

import pytest
import torch
from quintet_common.devices import bfloat16_pays


@pytest.mark.parametrize(
    ("has", "pays"),
    [
        ({"avx2": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"sve_bf16": True}, True),
        ({}, False),
    ],
)
def test_bfloat16_pays_where_there_are_instructions_for_it(
    has: dict[str, bool], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert bfloat16_pays(torch.device("cpu")) is pays
    assert bfloat16_pays(torch.device("cuda:0"))
