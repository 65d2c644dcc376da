"""Qwen2 quantised by GPTQ, through vLLM and our API, on tiny random checkpoints.

Runs where QUINTET_VLLM_PYTHON names an interpreter that has vLLM.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from chat import gptq_tiny
from chat.engine_kit import tokenizer
from chat.vllm_models import needs_vllm, served, spec_of
from openai import OpenAI
from quintet_chat.vllm.engine import VllmEngine
from quintet_common.worker.host import LoadError

pytestmark = needs_vllm


def test_a_quantised_model_says_what_its_numbers_mean(tmp_path: Path) -> None:
    model = gptq_tiny.write(tmp_path)
    with served(spec_of(tmp_path, id="gptq", engine="auto", dtype="bfloat16")) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        answer = client.completions.create(model="gptq", prompt="the cat sat", max_tokens=8, temperature=0, logprobs=3)
        assert client.models.retrieve("gptq").model_dump()["quantization"] == "gptq"
    ids = tokenizer()("the cat sat", add_special_tokens=False)["input_ids"]
    said = answer.choices[0].logprobs
    assert said is not None
    assert said.top_logprobs is not None
    with torch.inference_mode():
        row = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    expected = row.topk(3).values.tolist()
    assert sorted(said.top_logprobs[0].values())[-3:] == pytest.approx(sorted(expected), abs=0.1)  # in bfloat16


def test_why_vllm_cannot_run_a_model_is_told(tmp_path: Path) -> None:
    gptq_tiny.write(tmp_path, experts=True)
    if shutil.which("nvidia-smi"):
        pytest.skip("with a GPU, vLLM has kernels for quantised experts")
    with pytest.raises(LoadError, match="MoE backend"):
        VllmEngine(spec_of(tmp_path, id="gptq", dtype="bfloat16")).load(lambda _fraction, _note: None)
