"""Quantised models: real checkpoints of each sort say what transformers says of them, or why they cannot be loaded."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from chat import chatglm_tiny, glm4v_tiny, gptq_tiny, picture_models, quantized_tiny
from chat.engine_kit import ask, started
from chat.quantized_tiny import (
    PROMPT,
    continued,
    say,
    write,
    write_bitsandbytes,
    write_compressed,
    write_fp8,
    write_mxfp4,
)
from quintet_chat.backends import gptq, packing, refusal
from quintet_chat.backends.loader import load
from quintet_chat.engine.runner import UnsupportedModel
from quintet_common import checkpoint, install
from quintet_common.footprint import needed
from quintet_common.models_yml import ModelSpec
from quintet_common.packing import pack
from quintet_common.worker.host import LoadError
from safetensors.torch import load_file, save_file

NEW = 12
CHATGLM = {name: value for name, value in glm4v_tiny.CONFIG.items() if name != "vision_config"}


def needs(module: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(absent, reason=f"the extra that brings {module} is not installed")


def spec_of(path: Path, **fields: Any) -> ModelSpec:
    return ModelSpec(**({"id": "m", "kind": "chat", "path": str(path), "device": "cpu", "dtype": "float32"} | fields))


def attempt(spec: ModelSpec) -> None:
    load(spec, 4, lambda _fraction, _note: None)


def says_the_same(spec: ModelSpec, reference: Any) -> dict[str, Any]:
    """The service's engine says greedily what ``reference`` says under ``generate``; its info comes back."""
    expected = continued(reference.eval(), NEW)
    engine = started(spec)
    heard = ask(engine, PROMPT, temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=1)
    said = [logprob.token for delta in heard.deltas() for logprob in delta.logprobs]
    assert said == [engine._output._token_text(token)[0] for token in expected]
    assert len(said) == NEW
    info: dict[str, Any] = engine.info  # type: ignore[attr-defined]
    engine.close()
    return info


def plainly(path: Path, **how: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **how)


def near(spec: ModelSpec, model: Any, slack: float = 0.06) -> None:
    """The estimate from the files is what the loaded model takes."""
    estimate = needed(spec)
    assert estimate is not None
    assert estimate == pytest.approx(model.get_memory_footprint(), rel=slack)


SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "int4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}


@needs("bitsandbytes")
@pytest.mark.parametrize("setting", SETTINGS)
def test_weights_are_quantised_at_load(setting: str, tmp_path: Path) -> None:
    spec = spec_of(write(tmp_path), engine_args={"quantization": setting})
    reference = plainly(tmp_path, quantization_config=transformers.BitsAndBytesConfig(**SETTINGS[setting]))
    near(spec, reference)
    assert says_the_same(spec, reference)["quantization"] == setting


@needs("bitsandbytes")
@pytest.mark.parametrize("kind", ["qwen2_vl", "llava"])
def test_eyes_stay_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "finish", lambda _model, _trial: None)  # a packed model does not know its size
    spec = picture_models.spec(kind, engine_args={"quantization": "int8"})
    loaded = load(spec, 4, lambda _fraction, _note: None)  # which compares what it says of a picture
    layers = dict(loaded.runner._model.named_modules())
    small = {name for name, layer in layers.items() if type(layer).__name__ == "Linear8bitLt"}
    assert len(small) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in small)
    assert loaded.info["modalities"] == ["text", "image"]
    near(spec, loaded.runner._model)


@needs("bitsandbytes")
@pytest.mark.parametrize("sees", [False, True], ids=["glm-4", "glm-4v"])
def test_the_original_glm4_is_quantised_while_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: bool
) -> None:
    """But for the eyes of the one that has them."""
    monkeypatch.setattr(packing, "finish", lambda _model, _trial: None)  # a packed model does not know its size
    if sees:
        glm4v_tiny.write(tmp_path, glm4v_tiny.text_model())
    else:
        chatglm_tiny.write(tmp_path, CHATGLM, chatglm_tiny.as_published(glm4v_tiny.text_model()))
    spec = spec_of(tmp_path, engine_args={"quantization": "int8"})
    loaded = load(spec, 4, lambda _fraction, _note: None)
    near(spec, loaded.runner._model)
    layers = dict(loaded.runner._model.named_modules())
    small = [name for name, layer in layers.items() if type(layer).__name__ == "Linear8bitLt"]
    assert len(small) == loaded.runner._model.config.num_hidden_layers * 6
    assert all(name.startswith("model.layers.") for name in small)
    assert loaded.info["modalities"] == (["text", "image"] if sees else ["text"])


@needs("bitsandbytes")
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_checkpoint_of_bitsandbytes(setting: str, tmp_path: Path) -> None:
    spec = spec_of(write_bitsandbytes(tmp_path, **SETTINGS[setting]))
    reference = plainly(Path(spec.path))
    near(spec, reference)
    assert says_the_same(spec, reference)["quantization"] == "bitsandbytes"


@needs("bitsandbytes")
def test_what_is_not_quantised_gets_the_type_asked_for(tmp_path: Path) -> None:
    spec = spec_of(write_bitsandbytes(tmp_path, load_in_8bit=True), dtype="bfloat16")
    loaded = load(spec, 4, lambda _fraction, _note: None)
    assert loaded.info["dtype"] == "bfloat16"


@needs("compressed_tensors")
@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8_DYNAMIC"])
def test_a_checkpoint_of_compressed_tensors(scheme: str, tmp_path: Path) -> None:
    spec = spec_of(write_compressed(tmp_path, scheme))
    reference = plainly(tmp_path, quantization_config=transformers.CompressedTensorsConfig(dequantize=True))
    near(spec, reference, slack=0.001)
    assert says_the_same(spec, reference)["quantization"] == "compressed-tensors"


def test_a_checkpoint_in_fp8(tmp_path: Path) -> None:
    spec = spec_of(write_fp8(tmp_path))
    reference = plainly(tmp_path)
    near(spec, reference, slack=0.001)
    assert says_the_same(spec, reference)["quantization"] == "fp8"
    half = spec_of(tmp_path, dtype="bfloat16")
    assert load(half, 4, lambda _fraction, _note: None).info["dtype"] == "bfloat16"


@needs("gptqmodel")
@needs("optimum")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_checkpoint_of_gptq_or_awq(method: str, tmp_path: Path) -> None:
    meant = gptq_tiny.write(tmp_path, method=method)
    spec = spec_of(tmp_path, engine="transformers")
    reference = plainly(tmp_path)
    near(spec, reference)
    with torch.inference_mode():
        ids = torch.tensor([PROMPT])
        assert torch.cosine_similarity(reference(ids).logits[0], meant(ids).logits[0]).min() > 0.99
    assert says_the_same(spec, reference)["quantization"] == method


def test_experts_of_gptq(tmp_path: Path) -> None:
    """As Qwen2-57B-A14B-Instruct-GPTQ-Int4 is published; the reference never was quantised."""
    meant = gptq_tiny.write(tmp_path, experts=True)
    spec = spec_of(tmp_path, engine="transformers")
    loaded = load(spec, 4, lambda _fraction, _note: None)
    model = loaded.runner._model
    small = {name for name, layer in model.named_modules() if isinstance(layer, gptq.GptqLinear)}
    assert len(small) == 2 * (4 + 3 + 4 * 3)
    assert not any(name.endswith("gate") for name in small)
    with torch.inference_mode():
        ids = torch.tensor([PROMPT])
        assert torch.allclose(model(ids).logits, meant(ids).logits, atol=1e-4)
    assert says_the_same(spec, meant)["quantization"] == "gptq"


@pytest.mark.parametrize("group", [-1, 7])
def test_a_row_of_a_group_that_is_not_there_is_told_by_its_tensor(group: int, tmp_path: Path) -> None:
    gptq_tiny.write(tmp_path, experts=True)
    (file,) = tmp_path.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("gate_proj.g_idx"))
    weights[name][3] = group
    save_file(weights, file, {"format": "pt"})
    last = len(weights[name.replace("g_idx", "scales")]) - 1
    with pytest.raises(
        LoadError, match=rf"gate_proj\.g_idx names the group {group}; the layer has the groups 0 to {last}\."
    ):
        attempt(spec_of(tmp_path, engine="transformers"))


def test_experts_of_gptq_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "finish", lambda _model, _trial: None)  # a packed model does not know its size
    meant = gptq_tiny.write(tmp_path, experts=True)
    spec = spec_of(tmp_path, engine="transformers", dtype="bfloat16")
    loaded = load(spec, 4, lambda _fraction, _note: None)
    assert loaded.info["dtype"] == "bfloat16"
    near(spec, loaded.runner._model, slack=0.001)
    with torch.inference_mode():
        ids = torch.tensor([PROMPT])
        said = loaded.runner._model(ids).logits[0].float()
        assert torch.cosine_similarity(said, meant(ids).logits[0]).min() > 0.99


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_layer_of_gptq_in_any_order_of_its_groups(bits: int, version: int) -> None:
    torch.manual_seed(5)
    inputs, outputs, group = 64, 32, 16
    layer = gptq.GptqLinear(inputs, outputs, bits, group, bias=False, stored_less=2 - version)
    numbers = torch.randint(0, 2**bits, (inputs, outputs))
    zeros = torch.randint(1, 2**bits, (inputs // group, outputs))
    of_row = torch.randperm(inputs) // group
    layer.scales.copy_(torch.rand(inputs // group, outputs))
    layer.g_idx.copy_(of_row)
    layer.qweight.copy_(_packed(numbers.T, bits).T)
    layer.qzeros.copy_(_packed(zeros - (2 - version), bits))
    meant = torch.stack([(numbers[i] - zeros[g]) * layer.scales[g].float() for i, g in enumerate(of_row)])
    given = torch.rand(3, inputs)
    assert torch.allclose(layer(given), given @ meant, atol=1e-4)


def _packed(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers [.., n] as int32 [.., n * bits / 32], the lowest bits first."""
    words = [
        [sum(int(each) << bits * i for i, each in enumerate(row[at : at + 32 // bits]))
         for at in range(0, len(row), 32 // bits)]
        for row in rows
    ]  # fmt: skip
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bits": 3}, "GPTQ with 3 bits is not supported for experts"),
        ({"bits": None}, "GPTQ with None bits is not supported for experts"),
        ({"group_size": 0}, "GPTQ in groups of 0 is not supported for experts"),
        ({"group_size": "32"}, "GPTQ in groups of 32 is not supported for experts"),
    ],
)
def test_a_width_of_experts_that_is_not_supported_is_told(wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    gptq_tiny.write(tmp_path, experts=True)
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    say(tmp_path, quantization_config=settings | wrong)
    with pytest.raises(LoadError, match=says):
        attempt(spec_of(tmp_path, engine="transformers"))


def test_a_checkpoint_in_mxfp4(tmp_path: Path) -> None:
    """As gpt-oss is published: experts in four bits, pairs of them in a byte."""
    spec = spec_of(write_mxfp4(tmp_path))
    reference = plainly(tmp_path)
    near(spec, reference, slack=0.02)
    assert says_the_same(spec, reference)["quantization"] == "mxfp4"


@needs("bitsandbytes")
def test_packing_leaves_quantised_layers_alone(tmp_path: Path) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16, so nothing is packed")
    how = transformers.BitsAndBytesConfig(load_in_8bit=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        write(tmp_path), dtype=torch.bfloat16, quantization_config=how
    )
    before = [type(layer) for layer in model.model.layers.modules()]
    assert len(pack(model)) == 1  # lm_head, which is not quantised
    assert [type(layer) for layer in model.model.layers.modules()] == before


@pytest.mark.parametrize("library", ["hook", "forward"])
def test_packing_leaves_layers_alone_that_something_was_hung_onto(library: str) -> None:
    layer = torch.nn.Linear(64, 64).bfloat16()
    if library == "hook":
        layer.register_forward_pre_hook(lambda _layer, given: given)
    else:
        layer.forward = lambda hidden: hidden  # type: ignore[method-assign]
    assert not pack(torch.nn.Sequential(layer))


@pytest.mark.parametrize("method", checkpoint.LIBRARIES)
def test_a_library_that_is_missing_is_named_with_its_extra(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(write(tmp_path), quantization_config={"quant_method": method})
    libraries = checkpoint.LIBRARIES[method]
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None if name in libraries.modules else object())
    with pytest.raises(LoadError) as refused:
        attempt(spec_of(tmp_path, engine="transformers"))
    for part in (
        f"quantised by {method}",
        *libraries.modules,
        install.command("quintet-chat", libraries.extra),
        "engine: vllm",
    ):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "config", "says"),
    [
        ({"quantization": "int3"}, {}, r"'int3' is not one of int8, int4"),
        ({"quantization": "int4"}, {"quantization_config": {"quant_method": "gptq"}}, "already, by gptq"),
        ({"quantization": "int4"}, {"num_experts": 8}, "experts with .*int4.*engine: vllm"),
        ({}, {"quantization_config": {"quant_method": "awq"}, "num_experts": 8}, "experts .*awq.*engine: vllm"),
        ({}, {"quantization_config": {"quant_method": "magic"}}, "by magic, which transformers does not know"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(
    arguments: dict[str, Any], config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    say(write(tmp_path), **config)
    with pytest.raises(LoadError, match=says):
        attempt(spec_of(tmp_path, engine="transformers", engine_args=arguments))


@needs("bitsandbytes")
def test_shapes_that_a_kernel_does_not_take_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.nn.modules

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("N must be divisible by block_n")

    monkeypatch.setattr(bitsandbytes.nn.modules.Linear4bit, "forward", refuse)
    with pytest.raises(LoadError, match="cannot be computed with engine_args: quantization: int4: N must be divisible"):
        attempt(spec_of(write(tmp_path), engine_args={"quantization": "int4"}))


CODE = {
    "configuration_own.py": """
from transformers import LlamaConfig
from pathlib import Path
Path(__file__).with_name("ran").touch()

class OwnConfig(LlamaConfig):
    model_type = "own_llama"
""",
    "modeling_own.py": """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
""",
}


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of an architecture that only the code beside it knows."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    config = transformers.LlamaConfig(**{
        name: value for name, value in quantized_tiny.model().config.to_dict().items()
        if name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                    "num_key_value_heads", "initializer_range", "max_position_embeddings", "eos_token_id")
    })  # fmt: skip
    torch.manual_seed(3)
    folder = write(tmp_path / "model", transformers.LlamaForCausalLM(config).float())
    for name, text in CODE.items():
        (folder / name).write_text(text)
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    return say(folder, model_type="own_llama", architectures=["OwnForCausalLM"], auto_map=own)


def ran(folder: Path) -> bool:
    return any(folder.parent.rglob("ran"))


@pytest.mark.parametrize("setting", [{}, {"trust_remote_code": False}])
def test_code_that_comes_with_a_model_is_not_run(with_code: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match=r"code of its own, which is not run unless .*\{trust_remote_code: true\}"):
        attempt(spec_of(with_code, engine_args=setting))
    assert not ran(with_code)


def test_code_is_run_where_the_entry_says_so_and_the_log_tells(
    with_code: Path, caplog: pytest.LogCaptureFixture
) -> None:
    native = transformers.LlamaForCausalLM.from_pretrained(
        with_code, config=transformers.LlamaConfig.from_pretrained(with_code), dtype=torch.float32
    )
    with caplog.at_level(logging.WARNING, "quintet.chat"):
        says_the_same(spec_of(with_code, engine_args={"trust_remote_code": True}), native)
    assert ran(with_code)
    assert "m: trust_remote_code is on" in caplog.text


def test_a_native_class_goes_before_the_code_beside_it(with_code: Path) -> None:
    say(with_code, model_type="llama")
    attempt(spec_of(with_code))
    assert not ran(with_code)


@pytest.mark.parametrize("name", ["trust_remote_code", "pickled_weights"])
def test_a_switch_is_true_or_false(name: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=f"{name}: expected true or false, got text"):
        attempt(spec_of(write(tmp_path), engine_args={name: "yes"}))


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    folder = write(tmp_path / "model")
    torch.save(quantized_tiny.model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickles_are_not_read_unless_the_entry_says_so(pickled: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LoadError, match=r"pickle \(pytorch_model.bin\).*\{pickled_weights: true\}"):
        attempt(spec_of(pickled))
    with caplog.at_level(logging.WARNING, "quintet.chat"):
        says_the_same(spec_of(pickled, engine_args={"pickled_weights": True}), quantized_tiny.model())
    assert "m: pickled_weights is on" in caplog.text


def test_nothing_but_tensors_is_read_of_a_pickle(pickled: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model.norm.weight": Bomb()}, pickled / "pytorch_model.bin")
    with pytest.raises(LoadError, match="pickles with more in them than plain tensors"):
        attempt(spec_of(pickled, engine_args={"pickled_weights": True}))
    assert not (tmp_path / "ran").exists()


@needs("bitsandbytes")
def test_a_layer_that_is_too_narrow_for_int4_is_named(tmp_path: Path) -> None:
    narrow = transformers.LlamaConfig(
        hidden_size=72, intermediate_size=100, num_hidden_layers=1, num_attention_heads=2, vocab_size=512
    )
    folder = write(tmp_path, transformers.LlamaForCausalLM(narrow))
    with pytest.raises(LoadError, match=r"int4: .*\. int4 needs .* of 32; model\..*_proj has 72 and 72\."):
        attempt(spec_of(folder, engine_args={"quantization": "int4"}))


def test_one_that_says_something_else_when_it_is_quantised_is_told_so() -> None:
    spec = ModelSpec(id="m", kind="chat", path="x", engine_args={"quantization": "int8"})
    said = refusal.reason(spec, None, UnsupportedModel("it says something else"))
    assert said == "m: engine_args: quantization: int8 changes too much: it says something else. Try int4, or none."
