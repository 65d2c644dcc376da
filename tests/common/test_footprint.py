"""What a model needs, read from files like those of real models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from quintet_common.footprint import Weights, in_words, needed, too_large, weights_in
from quintet_common.models_yml import ModelSpec
from safetensors.torch import save_file


def spec_of(folder: Path | str, **fields: object) -> ModelSpec:
    return ModelSpec(id="m", kind="chat", path=str(folder), **fields)  # type: ignore[arg-type]


def names(folder: Path) -> list[tuple[str, str]]:
    weights = weights_in(folder)
    assert weights is not None
    return [(tensor.name, tensor.dtype) for tensor in weights.tensors]


def save(folder: Path, name: str, **tensors: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)


def pipeline(folder: Path, *parts: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({part: ["library", "Class"] for part in parts}))


def test_floats_are_counted_as_they_are_loaded(tmp_path: Path) -> None:
    half = torch.zeros(7, dtype=torch.bfloat16)
    save(tmp_path, "model-1.safetensors", a=torch.zeros(10, 10), b=half)
    pipeline(tmp_path, "text_encoder")
    save(tmp_path / "text_encoder", "model.safetensors", c=torch.zeros(3, dtype=torch.int32))
    weights = weights_in(tmp_path)
    assert weights is not None
    assert weights.loaded_as("float32") == 107 * 4 + 12
    assert weights.loaded_as("bfloat16") == weights.loaded_as("auto") == 107 * 2 + 12


def test_what_is_there_twice_counts_once(tmp_path: Path) -> None:
    pipeline(tmp_path, "unet", "vae")
    save(tmp_path / "unet", "model.safetensors", a=torch.zeros(10))
    save(tmp_path / "unet", "model.fp16.safetensors", a=torch.zeros(10).half())
    save(tmp_path / "vae", "model.fp16.safetensors", a=torch.zeros(5).half())
    save(tmp_path, "consolidated.safetensors", a=torch.zeros(10))
    save(tmp_path, "model-00001-of-00001.safetensors", a=torch.zeros(1).half())
    assert names(tmp_path) == [("a", "F16"), ("a", "F32"), ("a", "F16")]
    save(tmp_path / "other", "consolidated.safetensors", a=torch.zeros(10))
    assert names(tmp_path / "other") == [("a", "F32")]


def test_other_formats_count_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").write_bytes(bytes(1000))
    (tmp_path / "flow.pt").write_bytes(bytes(500))
    assert weights_in(tmp_path) == Weights([], 1500)
    assert weights_in(tmp_path / "nothing") is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x0d\0\0\0\0\0\0\0{"a": {"b":1}'])
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


def header(folder: Path, tensors: dict[str, tuple[str, list[int]]], **config: object) -> ModelSpec:
    """A folder with these tensors, so far as headers say it."""
    told = json.dumps({name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()}).encode()
    (folder / "model.safetensors").write_bytes(len(told).to_bytes(8, "little") + told)
    (folder / "config.json").write_text(json.dumps(config))
    return spec_of(folder)


def test_fp8_is_expanded_by_transformers_and_kept_by_vllm(tmp_path: Path) -> None:
    spec = header(
        tmp_path,
        {"a.weight": ("F8_E4M3", [1024, 1024]), "a.weight_scale_inv": ("F32", [8, 8]), "n.weight": ("BF16", [1024])},
        quantization_config={"quant_method": "fp8"},
    )
    assert needed(spec) == (1024 * 1024 + 1024) * 2
    assert needed(replace(spec, dtype="float32")) == (1024 * 1024 + 1024) * 4
    assert needed(replace(spec, engine="vllm")) == 1024 * 1024 + 64 * 4 + 1024 * 2


def test_mxfp4_is_expanded_by_transformers_and_kept_by_vllm(tmp_path: Path) -> None:
    tensors = {"e.down_proj_blocks": ("U8", [4, 64, 2, 16]), "e.down_proj_scales": ("U8", [4, 64, 2])}
    spec = header(tmp_path, tensors, quantization_config={"quant_method": "mxfp4"})
    assert needed(spec) == 4 * 64 * 64 * 2
    assert needed(replace(spec, engine="vllm")) == 4 * 64 * 2 * 17


def test_numbers_that_are_packed_count_as_the_config_says(tmp_path: Path) -> None:
    groups = {"group_0": {"weights": {"num_bits": 8}}}
    tensors = {
        "a.weight_packed": ("I32", [64, 16]), "a.weight_scale": ("BF16", [64, 2]), "a.weight_shape": ("I64", [2]),
        "a.weight_zero_point": ("I8", [64, 2]), "b.weight": ("I8", [64, 64]), "b.weight_scale": ("BF16", [64, 1]),
    }  # fmt: skip
    settings = {"quant_method": "compressed-tensors", "config_groups": groups}
    spec = header(tmp_path, tensors, text_config={"quantization_config": settings})
    assert needed(spec) == 2 * 64 * 64 * 2


def test_scales_keep_their_type_where_weights_stay_quantised(tmp_path: Path) -> None:
    tensors = {"a.weight": ("U8", [2048, 1]), "a.weight.absmax": ("F32", [64]), "n.weight": ("F32", [10])}
    spec = header(tmp_path, tensors, quantization_config={"quant_method": "bitsandbytes"})
    assert needed(spec) == 2048 + 64 * 4 + 10 * 2


@pytest.mark.parametrize(("setting", "size"), [("int8", 640 * 128 + 640 * 4), ("int4", 640 * 128 * 9 // 16)])
def test_quantising_at_load_makes_matrices_of_layers_small(tmp_path: Path, setting: str, size: int) -> None:
    tensors = {
        "model.layers.0.mlp.up_proj.weight": ("BF16", [640, 128]), "model.embed_tokens.weight": ("BF16", [300, 128]),
        "lm_head.weight": ("BF16", [300, 128]), "model.norm.weight": ("F32", [128]),
        "visual.patch_embed.weight": ("F16", [4, 3, 14, 14]),
    }  # fmt: skip
    spec = replace(header(tmp_path, tensors), engine_args={"quantization": setting})
    assert needed(spec) == size + (600 * 128 + 128 + 4 * 3 * 196) * 2
    assert needed(replace(spec, engine="vllm")) == (640 * 128 + 600 * 128 + 128 + 4 * 3 * 196) * 2
