"""What a model needs, read from files like those of real models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quintet_common.footprint import Weights, in_words, too_large, weights_in
from quintet_common.models_yml import ModelSpec
from safetensors.torch import save_file


def spec_of(folder: Path | str, **fields: object) -> ModelSpec:
    return ModelSpec(id="m", kind="chat", path=str(folder), **fields)  # type: ignore[arg-type]


def save(folder: Path, name: str, **tensors: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)


def test_floats_are_counted_as_they_are_loaded(tmp_path: Path) -> None:
    half = torch.zeros(7, dtype=torch.bfloat16)
    save(tmp_path, "model-1.safetensors", a=torch.zeros(10, 10), b=half)
    save(tmp_path / "text_encoder", "model.safetensors", c=torch.zeros(3, dtype=torch.int32))
    weights = weights_in(tmp_path)
    assert weights == Weights({32: 100, 16: 7}, 12)
    assert weights.loaded_as("float32") == 107 * 4 + 12
    assert weights.loaded_as("bfloat16") == weights.loaded_as("auto") == 107 * 2 + 12


def test_what_is_there_twice_counts_once(tmp_path: Path) -> None:
    save(tmp_path / "unet", "model.safetensors", a=torch.zeros(10))
    save(tmp_path / "unet", "model.fp16.safetensors", a=torch.zeros(10).half())
    save(tmp_path / "vae", "model.fp16.safetensors", a=torch.zeros(5).half())
    save(tmp_path, "consolidated.safetensors", a=torch.zeros(10))
    save(tmp_path, "model-00001-of-00001.safetensors", a=torch.zeros(1).half())
    assert weights_in(tmp_path) == Weights({32: 10, 16: 6}, 0)
    save(tmp_path / "other", "consolidated.safetensors", a=torch.zeros(10))
    assert weights_in(tmp_path / "other") == Weights({32: 10}, 0)


def test_other_formats_count_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").write_bytes(bytes(1000))
    (tmp_path / "flow.pt").write_bytes(bytes(500))
    assert weights_in(tmp_path) == Weights({}, 1500)
    assert weights_in(tmp_path / "nothing") is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x0c\0\0\0\0\0\0\0{"a": {"b":1'])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(OSError, match=r"model\.safetensors is no safetensors file"):
        weights_in(tmp_path)


def test_memory_that_is_granted_is_compared(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", a=torch.zeros(1_000_000))
    assert too_large(spec_of(tmp_path, memory={0: "2MB"})) is None
    assert too_large(spec_of(tmp_path, memory={0: "1MB", "cpu": "1MB"})) is None
    line = too_large(spec_of(tmp_path, memory={0: "2MB"}, dtype="float32"))
    assert line == "the weights of 'm' need 4 MB, but memory grants 2 MB."
    assert too_large(spec_of(tmp_path)) is None
    assert too_large(spec_of("org/name", memory={0: "1MB"})) is None


@pytest.mark.parametrize(("size", "words"), [(0, "0 B"), (999, "999 B"), (15_231_233_024, "15.2 GB"), (2000, "2 kB")])
def test_sizes_in_words(size: int, words: str) -> None:
    assert in_words(size) == words
