"""What ``quintet check`` says of quantised models, of pickles, and of packages that a model needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.test_commands import status_of
from quintet import fit
from quintet.checks import load_changed
from quintet_common import checkpoint, install, vllm_program
from quintet_common.models_yml import Config

GB = 10**9
HIDDEN, LAYERS, EXPERTS, OF_EXPERT, SHARED, KEYS, WORDS, GROUP = 3584, 28, 64, 2560, 20480, 512, 151936, 128
"""Qwen2-57B-A14B-Instruct-GPTQ-Int4, as its config.json has it."""


def quantised(name: str, rows: int, columns: int) -> Iterator[tuple[str, str, list[int]]]:
    """A layer of ``rows`` inputs and ``columns`` outputs as GPTQ stores it: eight numbers in an int32."""
    yield f"{name}.qweight", "I32", [rows // 8, columns]
    yield f"{name}.qzeros", "I32", [rows // GROUP, columns // 8]
    yield f"{name}.scales", "F16", [rows // GROUP, columns]
    yield f"{name}.g_idx", "I32", [rows]


def tensors() -> Iterator[tuple[str, str, list[int]]]:
    yield "model.embed_tokens.weight", "F16", [WORDS, HIDDEN]
    yield "lm_head.weight", "F16", [WORDS, HIDDEN]
    for layer in (f"model.layers.{index}" for index in range(LAYERS)):
        yield f"{layer}.mlp.gate.weight", "F16", [EXPERTS, HIDDEN]
        yield f"{layer}.mlp.shared_expert_gate.weight", "F16", [1, HIDDEN]
        for name, width in (("q_proj", HIDDEN), ("k_proj", KEYS), ("v_proj", KEYS), ("o_proj", HIDDEN)):
            yield from quantised(f"{layer}.self_attn.{name}", HIDDEN, width)
        networks = [(f"experts.{index}", OF_EXPERT) for index in range(EXPERTS)] + [("shared_expert", SHARED)]
        for network, width in networks:
            yield from quantised(f"{layer}.mlp.{network}.gate_proj", HIDDEN, width)
            yield from quantised(f"{layer}.mlp.{network}.up_proj", HIDDEN, width)
            yield from quantised(f"{layer}.mlp.{network}.down_proj", width, HIDDEN)


@pytest.fixture(scope="module")
def qwen2_57b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of the published folder as headers are: eight files, without their data."""
    folder = tmp_path_factory.mktemp("models") / "Qwen2-57B-A14B-Instruct-GPTQ-Int4"
    folder.mkdir()
    shards: list[dict[str, Any]] = [{} for _ in range(8)]
    for index, (name, dtype, shape) in enumerate(tensors()):
        shards[index % 8][name] = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    for index, shard in enumerate(shards, 1):
        header = json.dumps(shard).encode()
        file = folder / f"model-0000{index}-of-00008.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header)
    config = {
        "model_type": "qwen2_moe", "num_experts": EXPERTS, "torch_dtype": "float16",
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").touch()
    return folder


@pytest.fixture(autouse=True)
def two_gpus_and_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "free", lambda: {0: 24 * GB, 1: 24 * GB, "cpu": 64 * GB})
    monkeypatch.setenv(vllm_program.PYTHON, "python-with-vllm")


def check(folder: Path, entry: str, tmp_path: Path) -> int | str | None:
    file = tmp_path / "models.yml"
    file.write_text(f"models: [{{id: m, kind: chat, path: {folder}, {entry}}}]")
    return status_of("check", str(file))


def test_the_quantised_model_of_the_zlai_page(
    qwen2_57b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(qwen2_57b, "memory: {0: 20GB, 1: 20GB}", tmp_path) == 0
    row = capsys.readouterr().out.splitlines()[2]
    # 56.3 thousand million numbers of 4 bits, with scale and zero for 128; 1.1 of 16 bits that are not quantised.
    assert "31.5 GB" in row
    assert "auto (vllm)" in row
    assert check(qwen2_57b, "engine: vllm, memory: {0: 20GB}", tmp_path) == 1
    assert "the weights of 'm' need 31.5 GB, but memory grants 20 GB." in capsys.readouterr().err
    assert check(qwen2_57b, "engine: vllm, memory: {0: 30GB, 1: 10GB}", tmp_path) == 0
    assert check(qwen2_57b, "engine: vllm", tmp_path) == 1
    assert "GPU 0 need 31.5 GB, but it has 24 GB free" in capsys.readouterr().err


def test_quantised_experts_need_no_library(qwen2_57b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(qwen2_57b, "engine: transformers, memory: {0: 20GB, 1: 20GB}", tmp_path) == 0
    assert check(qwen2_57b, "engine: transformers, memory: {0: 20GB}", tmp_path) == 1
    assert "the weights of 'm' need 31.5 GB, but memory grants 20 GB." in capsys.readouterr().err


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    header = json.dumps({"layer.weight": {"dtype": "BF16", "shape": [1000, 4000], "data_offsets": [0, 8_000_000]}})
    data = bytes(8_000_000)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").touch()
    return folder


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: object() if name in names else None)


def test_what_quantisation_at_load_needs(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = "memory: {0: 5MB}, engine_args: {quantization: int4}"
    installed(monkeypatch, "transformers", "bitsandbytes")
    assert check(dense, entry, tmp_path) == 0
    assert "2.25 MB" in capsys.readouterr().out
    installed(monkeypatch, "transformers")
    assert check(dense, entry, tmp_path) == 1
    assert f"'bitsandbytes': {install.command('quintet-chat', 'bitsandbytes')}" in capsys.readouterr().err
    installed(monkeypatch)  # the chat service is elsewhere, and so are its packages
    assert check(dense, entry, tmp_path) == 0
    assert check(dense, "memory: {0: 5MB}", tmp_path) == 1


def test_pickles_are_told_before_anything_is_loaded(
    tmp_path: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dense / "model.safetensors").unlink()
    (dense / "pytorch_model-00001-of-00002.bin").write_bytes(bytes(1000))
    assert check(dense, "default: true", tmp_path) == 1
    assert "m: its weights are a pickle (pytorch_model-00001-of-00002.bin)" in capsys.readouterr().err
    assert check(dense, "engine_args: {pickled_weights: true}", tmp_path) == 0


def test_a_release_of_cosyvoice_without_voices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As CosyVoice-300M is published."""
    folder = tmp_path / "CosyVoice-300M"
    folder.mkdir()
    (folder / "cosyvoice.yaml").touch()
    file = tmp_path / "models.yml"
    file.write_text("models: [{id: m, kind: tts, path: ./CosyVoice-300M}]")
    assert status_of("check", str(file)) == 1
    assert "Copy spk2info.pt of CosyVoice-300M-SFT into the folder" in capsys.readouterr().err
    (tmp_path / "voices.pt").touch()
    file.write_text("models: [{id: m, kind: tts, path: ./CosyVoice-300M, engine_args: {voices: voices.pt}}]")
    assert status_of("check", str(file)) == 0
    (folder / "spk2info.pt").touch()
    file.write_text("models: [{id: m, kind: tts, path: ./CosyVoice-300M}]")
    assert status_of("check", str(file)) == 0


@pytest.mark.parametrize(
    ("entry", "says"),
    [("", "m: a model quantised by gptq is for vLLM; vLLM is not"), ("engine: vllm", "m: vLLM is not")],
)
def test_a_model_for_vllm_where_there_is_none(
    qwen2_57b: Path,
    entry: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(vllm_program.PYTHON)
    monkeypatch.setattr(vllm_program, "find", lambda _path: None)
    assert check(qwen2_57b, f"memory: {{0: 20GB, 1: 20GB}}, {entry}", tmp_path) == 1
    assert f"models.yml:1: {says} installed here." in capsys.readouterr().err
    load_changed(tmp_path / "models.yml", Config())  # the others go on
    assert check(qwen2_57b, "engine: vllm, engine_args: {url: 'http://a:1'}, memory: {0: 40GB}", tmp_path) == 1
    assert "vLLM is not" not in capsys.readouterr().err
