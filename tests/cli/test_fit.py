"""Whether models fit, on machines with and without GPUs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cli.test_commands import status_of
from quintet import fit
from quintet_common.models_yml import ModelSpec

GB = 10**9


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """8 GB of weights, as far as the header says."""
    folder = tmp_path / "model"
    folder.mkdir()
    header = b'{"a":{"dtype":"F32","shape":[4000,1000000],"data_offsets":[0,16000000000]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / "model.safetensors", 8 + len(header) + 16 * GB)  # with nothing in it, it takes no room
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").touch()
    return folder


def spec_of(path: Path | str, **fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": "m", "kind": "chat", "path": str(path)} | fields)


def test_weights_go_where_the_entry_says(model: Path) -> None:
    two = {0: 10 * GB, 1: 10 * GB, "cpu": 100 * GB}
    assert fit.devices(spec_of(model), two) == [0]
    assert fit.devices(spec_of(model, device="cuda:1"), two) == [1]
    assert fit.devices(spec_of(model, device="cpu"), two) == ["cpu"]
    assert fit.devices(spec_of(model, memory={0: "1GB", 1: "1GB"}), two) == [0, 1]
    assert fit.devices(spec_of(model, memory={"cpu": "1GB"}), two) == ["cpu"]
    assert fit.devices(spec_of(model), {"cpu": GB}) == ["cpu"]
    assert fit.devices(spec_of(model, memory={0: "1GB"}), {"cpu": GB}) == ["cpu"]


def test_all_models_of_a_device_count_together(model: Path) -> None:
    both = [spec_of(model, id="a"), spec_of(model, id="b")]
    assert fit.problems(both, {0: 16 * GB, "cpu": GB}) == []
    assert fit.problems(both, {0: 15 * GB, "cpu": GB}) == [
        "the weights of the models for GPU 0 need 16 GB, but it has 15 GB free."
    ]
    assert fit.problems(both, {"cpu": 12 * GB}) == [
        "the weights of the models for this machine need 16 GB, but it has 12 GB free."
    ]
    assert fit.problems([spec_of(model, memory={0: "5GB", 1: "5GB"})], {0: 5 * GB, 1: 5 * GB}) == []
    assert fit.problems([spec_of(model, memory={3: "9GB"})], {0: 5 * GB}) == [
        "GPU 3 is not there, and a model is to go onto it."
    ]
    assert fit.problems([spec_of("org/not-here"), spec_of("embedded:x")], {"cpu": 1}) == []


def test_the_driver_is_asked_for_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, 81000'\necho '1, 24000'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = fit.free()
    assert (found[0], found[1]) == (81000 << 20, 24000 << 20)
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert 0 not in fit.free()


def test_check_and_serve_refuse_what_cannot_fit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = model.parent / "models.yml"
    file.write_text(
        f"models_config:\n  - model_name: m\n    model_path: {model}\n    model_type: completion\n"
        '    load_method: load_qwen2\n    max_memory: {0: "2GB"}\n'
    )
    assert status_of("check", str(file)) == 1
    printed = capsys.readouterr()
    line = f"{file}:6: the weights of 'm' need 8 GB, but max_memory grants 2 GB."
    assert printed.err.splitlines()[0] == line
    assert "8 GB" in printed.out
    assert status_of("serve", str(file)) == 2
    assert line in capsys.readouterr().err


def test_broken_weights_are_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "model.safetensors").write_bytes(b"\1\0\0\0\0\0\0\0nonsense")
    file = model.parent / "models.yml"
    file.write_text(f"models: [{{id: m, kind: chat, path: {model}}}]")
    assert status_of("check", str(file)) == 1
    assert capsys.readouterr().err == f"{file}:1: m: {model}/model.safetensors is no safetensors file.\n"


def test_check_says_of_embedded_models_and_of_folders_alike_what_cannot_be(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "free", lambda: {"cpu": 100 * GB})
    monkeypatch.setattr(fit, "_NODES", ())
    (model / "config.json").write_text('{"model_type": "qwen2", "max_position_embeddings": 4096}')
    paths = ["embedded:smollm2-135m-instruct", str(model)]
    fields = ["memory: {cpu: 10MB}", "device: cuda", "memory: {0: 9GB}", "context: 100000"]
    rows = [f"  - {{id: '{path} {field}', kind: chat, path: '{path}', {field}}}" for path in paths for field in fields]
    file = model.parent / "models.yml"
    file.write_text("\n".join(["models:", *rows]))
    assert status_of("check", str(file)) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"{file}:2: the weights of '{paths[0]} {fields[0]}' need 269 MB, but memory grants 10 MB.",
        f"{file}:3: device: cuda: there is no GPU here.",
        f"{file}:6: the weights of '{paths[1]} {fields[0]}' need 8 GB, but memory grants 10 MB.",
        f"{file}:7: device: cuda: there is no GPU here.",
    ]
    gpu = "memory: there is no GPU here; the model runs on the CPU, where limits of GPUs do not count."
    assert [line for line in printed.out.splitlines() if line.startswith("note: ")] == [
        f"note: {file}:4: {gpu}",
        f"note: {file}:5: context: 100000 is more than the 8192 tokens of the model itself, which count.",
        f"note: {file}:8: {gpu}",
        f"note: {file}:9: context: 100000 is more than the 4096 tokens of the model itself, which count.",
    ]


def test_what_runs_on_the_cpu_alone_is_noted_and_refused_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "free", lambda: {"cpu": 100 * GB})
    file = tmp_path / "models.yml"
    file.write_text(
        "models_config:\n  - model_name: a\n    model_path: embedded:hibari\n    model_type: tts\n"
        "    max_memory: {0: 1GB}\n"
    )
    assert status_of("check", str(file)) == 0
    note = f"note: {file}:5: max_memory: embedded:hibari runs on the CPU alone, whatever it is granted of GPUs."
    assert capsys.readouterr().out.splitlines()[-1] == note
    file.write_text("models: [{id: a, kind: tts, path: embedded:hibari, device: cuda}]")
    assert status_of("check", str(file)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"note: {file}:1: device: embedded:hibari runs on the CPU alone."


def test_a_gpu_without_its_driver_s_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_NODES", ())
    assert not fit.has_gpu({"cpu": GB})
    assert fit.has_gpu({0: GB, "cpu": GB})
    monkeypatch.setattr(fit, "_NODES", ("nul[l]",))
    assert fit.has_gpu({"cpu": GB})
