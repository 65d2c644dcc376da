"""What is read of a release's folder, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tiktoken")

import torch
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_tts.backends import loading
from quintet_tts.cosyvoice import files, settings
from quintet_tts.cosyvoice.files import Models
from safetensors.torch import save_file
from torch.testing import assert_close
from tts import cosyvoice_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cosyvoice_tiny.write(tmp_path / "CosyVoice-300M-SFT")


def quiet(_fraction: float, _note: str) -> None:
    pass


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Models:
    return files.load(folder, files.read_config(folder), torch.device("cpu"), dtype, quiet)


def load(folder: Path, **more: Any) -> Any:
    return loading.load(ModelSpec(id="cosy", kind="tts", path=str(folder), device="cpu", **more), quiet)


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "cosyvoice.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_weights_survive_the_layout_of_a_release(folder: Path) -> None:
    """Weight norm in all three ways of writing it, and safetensors in place of a pickle, give the same vocoder."""
    saved = torch.load(folder / "hift.pt", weights_only=True)
    expected = read(folder).hift.state_dict()
    for zero, one, prefix in (("weight_g", "weight_v", ""), ("parametrizations.weight.original0", None, "generator.")):
        other = {}
        for name, tensor in saved.items():
            name = name.replace("parametrizations.weight.original0", zero)
            name = name.replace("parametrizations.weight.original1", one or "parametrizations.weight.original1")
            other[prefix + name] = tensor
        torch.save(other, folder / "hift.pt")
        assert_close(read(folder).hift.state_dict(), expected)
    (folder / "hift.pt").unlink()
    save_file(saved, folder / "hift.safetensors")
    assert_close(read(folder).hift.state_dict(), expected)


def test_half_precision_leaves_the_vocoder_alone(folder: Path) -> None:
    models = read(folder, torch.bfloat16)
    kinds = [{each.dtype for each in model.parameters()} for model in (models.lm, models.flow, models.hift)]
    assert kinds == [{torch.bfloat16}, {torch.bfloat16}, {torch.float32}]


@pytest.mark.parametrize("part", ["llm", "flow", "hift"])
def test_weights_that_do_not_fit_are_refused(folder: Path, part: str) -> None:
    file = folder / f"{part}.pt"
    saved = torch.load(file, weights_only=True)
    name = next(name for name in saved if name.endswith("bias"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({key: value for key, value in saved.items() if key != name}, "1 weights are missing"),
        (saved | {"surprise": torch.zeros(1)}, r"1 are unknown \(surprise\)"),
        (saved | {name: torch.zeros(3, 3)}, r"1 have another shape .* \[3, 3\] instead of"),
    ]
    for tensors, words in cases:
        torch.save(tensors, file)
        with pytest.raises(LoadError, match=words):
            read(folder)
    file.unlink()
    with pytest.raises(LoadError, match=f"{part}.pt is missing"):
        read(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_that_would_run_code_is_not_read(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    for name in ("llm.pt", "spk2info.pt"):
        saved = (folder / name).read_bytes()
        torch.save({"text_embedding.weight": Bomb()}, folder / name)
        with pytest.raises(LoadError, match="nothing else is read"):
            load(folder)
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(LoadError, match="nothing else is read"):
            load(folder)
        (folder / name).write_bytes(saved)
    assert not (tmp_path / "ran").exists()


def test_yaml_runs_no_code(folder: Path, tmp_path: Path) -> None:
    harm = tmp_path / "ran"
    with (folder / "cosyvoice.yaml").open("a") as file:
        file.write(f"harm: !apply:os.mkdir [{harm}]\nmore: !new:subprocess.Popen\n    args: [mkdir, {harm}]\n")
    files.read_config(folder)
    with (folder / "cosyvoice.yaml").open("a") as file:
        file.write(f"worst: !!python/object/apply:os.mkdir [{harm}]\n")
    with pytest.raises(LoadError, match="not valid YAML"):
        files.read_config(folder)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_blocks: 2", "num_blocks: many", "llm.llm.num_blocks is 'many', not a whole number above 0"),
        ("use_cnn_module: False", "use_cnn_module: True", "llm.text_encoder.use_cnn_module is True; .* only False"),
        ("llm.TransformerLM", "llm.Qwen2LM", "llm is Qwen2LM; this version loads TransformerLM there"),
        ("input_frame_rate: 50", "input_frame_rate: 25", "flow.input_frame_rate is 25"),
        ("input_size: !ref <width>", "input_size: !ref <height>", "refers to 'height', which is not in the file"),
        ("solver: 'euler'", "solver: 'magic'", "solver is 'magic'"),
        ("        n_fft: 16\n", "", "hift.istft_params.n_fft is missing"),
        ("sampling_ratios: [1, 1]", "sampling_ratios: [2, 1]", "only ones"),
        ("base_channels: 16", "base_channels: !ref <width> * 2", "refers to"),
        ("vocab_size: 40", "vocab_size: 41", "does not fit"),
        ("sample_rate: 22050\nwidth", "sample_rate: 24000\nwidth", "only 22050 Hz"),
        ("attention_heads: 2\n        linear_units: 24", "attention_heads: 3\n        linear_units: 24", "divide"),
        ("width: 16", "width: 18", "have another shape than cosyvoice.yaml says"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(folder: Path, old: str, new: str, words: str) -> None:
    edit(folder, old, new)
    with pytest.raises(LoadError, match=words):
        read(folder)


def test_references_lead_nowhere_for_ever() -> None:
    top = {"a": settings.Reference("b"), "b": settings.Reference("a")}
    with pytest.raises(LoadError, match="not a whole number"):
        settings.Section("file", "", top, top).integer("a")


@pytest.mark.parametrize("name", ["cosyvoice2.yaml", "cosyvoice3.yaml"])
def test_newer_versions_are_recognised_and_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("sample_rate: 24000\n")
    with pytest.raises(LoadError, match=rf"is CosyVoice{name[9]}\. CosyVoice 1 is supported .* are not"):
        load(tmp_path)


def test_voices(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="engine_args"):
        load(folder, engine_args={"voice": "x"})
    with pytest.raises(LoadError, match="first_chunk: expected a whole number >= 30"):
        load(folder, engine_args={"first_chunk": 5})
    moved = tmp_path / "voices.pt"
    (folder / "spk2info.pt").rename(moved)
    with pytest.raises(LoadError, match=r"spk2info\.pt is missing.*Copy spk2info\.pt of CosyVoice-300M-SFT into"):
        load(folder)
    assert len(load(folder, engine_args={"voices": str(moved)})[1]["cosyvoice"].voices()) == 7
    one = {"中文女": torch.load(moved, weights_only=True)["中文女"]}
    torch.save(one, folder / "spk2info.pt")
    assert [voice.id for voice in load(folder)[1]["cosyvoice"].voices()] == ["中文女"]
    assert len(load(folder, engine_args={"voices": str(moved)})[1]["cosyvoice"].voices()) == 7  # in place of its own
    torch.save({}, moved)
    with pytest.raises(LoadError, match=r"voices\.pt is empty"):
        load(folder, engine_args={"voices": str(moved)})
    torch.save({"short": {"embedding": torch.zeros(1, 5)}}, moved)
    with pytest.raises(LoadError, match="'short' does not fit"):
        load(folder, engine_args={"voices": str(moved)})
    torch.save({"bare": {}}, moved)
    with pytest.raises(LoadError, match="no usable 'embedding'"):
        load(folder, engine_args={"voices": str(moved)})


def test_another_vocabulary_is_refused(folder: Path) -> None:
    edit(folder, "text_token_size: 51866", "text_token_size: 60515")
    with pytest.raises(LoadError, match="25 Hz variant"):
        load(folder)


def test_what_is_not_installed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tiktoken", None)
    for name in ("quintet_tts.backends.cosyvoice", "quintet_tts.cosyvoice.tokenizer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("quintet_tts.backends.cosyvoice", raising=False)
    with pytest.raises(LoadError, match=r"'tiktoken'.*services/tts\[cosyvoice\]"):
        load(folder)
