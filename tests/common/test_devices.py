"""On what, and how precisely, a model runs where its entry leaves it open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quintet_common.devices import bfloat16_pays, pick_device
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError


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


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(spec_of(memory={0: "2GB"})).type == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "m: memory grants it a GPU, and there is none here: it runs on the CPU."
    ]
    with pytest.raises(LoadError, match=r"^device: cuda: there is no CUDA device here"):
        pick_device(spec_of(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(spec_of(device="cuda:1")) == torch.device("cuda", 1)
    assert pick_device(spec_of(memory={1: "2GB"})) == torch.device("cuda", 1)
    with pytest.raises(LoadError, match=r"^device: GPU 2 is not there; 2 are, counted from 0"):
        pick_device(spec_of(device="cuda:2"))
    with pytest.raises(LoadError, match=r"^memory: GPU 7 is not there"):
        pick_device(spec_of(memory={7: "2GB"}))


def spec_of(**fields: Any) -> ModelSpec:
    return ModelSpec(id="m", kind="chat", path="/m", **fields)
