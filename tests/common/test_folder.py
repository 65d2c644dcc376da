"""What a folder lacks, or holds instead: told by its files before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from quintet_common import headers
from quintet_common.folder import problem
from quintet_common.footprint import needed, weights_in
from quintet_common.layout import places
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, _may_pass
from safetensors.torch import save_file


def of(folder: Path | str, kind: Any = "chat", **fields: Any) -> str | None:
    text = problem(ModelSpec(id="m", kind=kind, path=str(folder), **fields))
    return None if text is None else text.removeprefix("m: ").replace(f"{folder}", "F")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A text model as it is published, in two files."""
    folder = tmp_path / "model"
    folder.mkdir()
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard in shards:
        save_file({f"{shard}.weight": torch.zeros(10)}, folder / shard)
    write(folder / "model.safetensors.index.json", weight_map={f"{shard}.weight": shard for shard in shards})
    write(folder / "config.json", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    (folder / "tokenizer.json").touch()
    return folder


def write(file: Path, **content: Any) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(content))


def test_a_whole_model(model: Path) -> None:
    assert of(model) is None
    assert of(model, "multimodal") == "it is a text model (qwen2), which takes no pictures: kind: chat."
    assert of(model, "image") == "F holds a Qwen2ForCausalLM (config.json), which is not of kind 'image'."
    assert of(model, "tts") == "F holds a Qwen2ForCausalLM (config.json), which is not of kind 'tts'."
    assert (of(model, "embedding") or "").startswith("F holds a Qwen2ForCausalLM, which writes texts, and no modules")
    assert of(model, "rerank") is None
    assert of("org/name") is None
    assert of(model / "x.gguf") == "a GGUF file cannot be loaded; give a folder in the layout of transformers."
    assert of("/nowhere", engine="vllm", engine_args={"url": "http://a"}) is None


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("config.json", "F has no config.json, so it is no folder of a model, or not all of one."),
        ("tokenizer.json", "F has no tokenizer (tokenizer.json, or what stands for it)."),
        (
            "model-00002-of-00002.safetensors",
            "F/model-00002-of-00002.safetensors is missing: model.safetensors.index.json names it.",
        ),
    ],
)
def test_a_file_that_is_missing_is_named(gone: str, says: str, model: Path) -> None:
    (model / gone).unlink()
    assert of(model) == says


def test_a_folder_without_weights(model: Path) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()
    assert of(model) == "F has no weights (*.safetensors)."
    (model / "model-q4.gguf").touch()
    assert of(model) == "F has no weights (*.safetensors). GGUF files are not read."
    (model / "pytorch_model.bin").touch()
    assert of(model) is None, "whether pickles are read is another question"


def test_the_index_of_a_variant_that_was_not_fetched_is_passed_over(model: Path) -> None:
    write(model / "model.fp16.safetensors.index.json", weight_map={"a": "model.fp16-00001-of-00002.safetensors"})
    write(model / "pytorch_model.bin.index.json", weight_map={"a": "pytorch_model-00001-of-00001.bin"})
    assert of(model) is None
    (model / "config.json").write_text("{")
    assert of(model) == "F/config.json is not valid JSON."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is the stand-in for a file that Git LFS has not fetched"),
        (b"\xff" * 64, "is no safetensors file."),
        (b"\x02\0\0\0\0\0\0\0[]", "is no safetensors file."),
        (b'\x07\0\0\0\0\0\0\0{"a":1}', "is no safetensors file."),
    ],
)
def test_what_is_no_safetensors_file_is_named(content: bytes, says: str, model: Path) -> None:
    (model / "model-00002-of-00002.safetensors").write_bytes(content)
    assert (of(model) or "").startswith(f"F/model-00002-of-00002.safetensors {says}")


@pytest.mark.parametrize(
    "tensor",
    ['{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}', '{"dtype":[],"shape":[1],"data_offsets":[0,4]}'],
)
def test_a_header_may_hold_anything(tensor: str, model: Path) -> None:
    header = f'{{"a":{tensor}}}'.encode()
    file = model / "model-00002-of-00002.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    read = headers.tensors if "[]" in tensor else headers.check_whole
    with pytest.raises(OSError, match="is no safetensors file"):
        read(file)


def test_a_config_may_hold_anything(model: Path) -> None:
    write(model / "config.json", architectures=5, model_type=["qwen2"], quantization_config={"config_groups": 5})
    assert of(model) is None
    (model / "config.json").write_text("[" * 100_000)
    assert of(model) == "F/config.json is not valid JSON."
    write(model / "config.json", model_type="qwen2", quantization_config={"quant_method": "fp8", "config_groups": 5})
    assert needed(ModelSpec(id="m", kind="chat", path=str(model)))


def test_a_folder_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    write(tmp_path / "model_index.json", **{"a" * 300: ["diffusers", "UNet"]})
    assert (of(tmp_path, "image") or "").endswith("cannot be read: File name too long.")


def test_a_file_that_is_cut_short_is_named(model: Path) -> None:
    file = model / "model-00002-of-00002.safetensors"
    whole = file.read_bytes()
    for size in range(1, len(whole)):
        file.write_bytes(whole[:size])
        assert (of(model) or "").startswith("F/model-00002-of-00002.safetensors is"), size
    assert of(model) == f"F/{file.name} is cut short: it has {len(whole) - 1} bytes of {len(whole)}; fetch it again."
    file.write_bytes(whole[:50])
    assert of(model) == f"F/{file.name} is cut short: it ends within its header; fetch it again."
    file.write_bytes(whole + b"more")
    assert of(model) == f"F/{file.name} is damaged: it has 4 bytes more than its header says; fetch it again."


@pytest.mark.parametrize(
    ("config", "kind", "says"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "chat", "an encoder (bert), which writes no texts"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "chat", None),
        (
            {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"]},
            "chat",
            "kind: rerank",
        ),
        ({"model_type": "qwen2_vl", "vision_config": {}}, "multimodal", None),
        ({"model_type": "minicpmv"}, "multimodal", None),
        ({"model_type": "own", "architectures": ["OwnVisionForCausalLM"]}, "multimodal", None),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "embedding", None),
        ({}, "multimodal", None),
    ],
)
def test_a_model_of_another_kind(config: dict[str, Any], kind: str, says: str | None, model: Path) -> None:
    write(model / "config.json", **config)
    found = of(model, kind)
    assert found is None if says is None else found is not None and says in found


def test_what_sentence_transformers_wrote_is_for_embedding(model: Path) -> None:
    (model / "modules.json").write_text("[]")
    assert of(model, "embedding") is None
    assert of(model) == "F holds a model of sentence-transformers (modules.json): kind: embedding."


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "pipeline"
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    write(folder / "model_index.json", _class_name="X", safety_checker=[None, None], force_zeros=True, **parts)
    write(folder / "scheduler" / "scheduler_config.json")
    write(folder / "unet" / "config.json")
    save_file({"a": torch.zeros(2)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def test_a_pipeline(pipeline: Path) -> None:
    assert of(pipeline, "image") is None
    assert of(pipeline) == "F holds a pipeline of diffusers (model_index.json): kind: image."
    found = of(pipeline / "unet", "image") or ""
    assert found.startswith("F has no model_index.json")
    assert found.endswith("name the folder above.")
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert of(pipeline, "image") == "F/unet has no weights (*.safetensors)."
    (pipeline / "unet" / "config.json").unlink()
    (pipeline / "unet").rmdir()
    assert of(pipeline, "image") == "F has no unet, which its model_index.json names."
    (pipeline / "model_index.json").unlink()
    assert (of(pipeline, "image") or "").startswith("F has no model_index.json, so it is no pipeline")


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("Org/Name", "chat", None),
        ("Org/Name@main", "chat", "'Org/Name@main' is no folder here, and no name on a hub, as Qwen/"),
        (
            "Org/Name",
            "tts",
            "the model 'm' is not there: Org/Name is no folder here, and nobody fetches it; `quintet pull",
        ),
        ("name", "tts", "the model 'm' is not there: name is no folder here, and nobody fetches it."),
        ("https://a.b/Org/Name", "chat", "the model 'm' is not there: https://a.b/Org/Name is an address; on a hub"),
        ("/no/where", "image", "the model 'm' is not there: /no/where does not exist."),
    ],
)
def test_what_is_not_here_and_cannot_be_fetched_is_told(
    path: str, kind: Any, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = problem(ModelSpec(id="m", kind=kind, path=path))
    assert found is None if says is None else str(found).removeprefix("m: ").startswith(says)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    for kind in ("chat", "image", "embedding"):
        assert of(file, kind) == "F is a file; a model is a folder, and its path is that of the folder."


def test_what_stays_wrong_is_not_tried_again(tmp_path: Path) -> None:
    local = ModelSpec(id="m", kind="image", path=str(tmp_path))
    hub = ModelSpec(id="m", kind="image", path="org/name")
    for error in (LoadError("x"), KeyError("x"), TypeError("x"), FileNotFoundError("x"), RuntimeError("size mismatch")):
        assert not _may_pass(error, local)
    for error in (OSError("x"), MemoryError(), RuntimeError("CUDA out of memory")):
        assert _may_pass(error, local)
    assert _may_pass(RuntimeError("the hub is down"), hub)


def test_only_the_top_and_the_parts_that_are_named_are_looked_at(tmp_path: Path, model: Path) -> None:
    """The folder may be anybody's home."""
    save_file({"a": torch.zeros(10)}, model.parent / "top.safetensors")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "cut.safetensors").write_bytes(b"junk")
    assert of(tmp_path, "tts") == "F has no speech model: no voice (*.onnx) and no cosyvoice.yaml."
    (tmp_path / "voice.onnx").touch()
    assert of(tmp_path, "tts") is None
    found = weights_in(tmp_path)
    assert found is not None
    assert [tensor.name for tensor in found.tensors] == ["a"]
    write(tmp_path / "model_index.json", unet=["diffusers", "UNet"], deep=[None, None], _class_name="X", up=["a", "b"])
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": ".."}, {"path": "/"}, {"path": "model"}, 7]')
    assert places(tmp_path) == [tmp_path, tmp_path / "deep", model]
    assert of(tmp_path, "image") == "F has no unet, which its model_index.json names."


@pytest.mark.parametrize("name", ["config.json", "model_index.json", "modules.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["chat", "image", "tts", "embedding"])
def test_a_pipe_is_not_waited_for(model: Path, name: str, kind: str) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    os.mkfifo(model / "extra.safetensors")
    spec = ModelSpec(id="m", kind=kind, path=str(model))  # type: ignore[arg-type]
    assert isinstance(problem(spec), str) or kind in ("tts", "chat")
    assert needed(spec) is not None
