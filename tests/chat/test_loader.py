"""What a model may be, and how a mistake in models.yml or a broken directory is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from chat.engine_kit import TEMPLATE, ask, started, tiny_path, tiny_spec, tokenizer
from msgspec.structs import replace
from quintet_chat.backends import families, memory
from quintet_chat.backends.loader import load
from quintet_chat.worker import create_engine
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError


def attempt(spec: ModelSpec) -> None:
    load(spec, 4, lambda _fraction, _note: None)


def spec_of(path: str | Path, **fields: Any) -> ModelSpec:
    return ModelSpec(id="m", kind="chat", path=str(path), dtype="float32", device="cpu", **fields)


def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_path(), tmp_path / "model"))


def test_loading_goes_forward_and_says_what_it_does() -> None:
    seen: list[tuple[float, str]] = []
    load(tiny_spec(), 4, lambda fraction, note: seen.append((fraction, note)))
    assert seen == sorted(seen)
    assert all(0 < fraction < 1 and note for fraction, note in seen)


def test_the_info_says_what_was_loaded() -> None:
    info = load(tiny_spec(context=300), 4, lambda _fraction, _note: None).info
    parameters = transformers.AutoModelForCausalLM.from_pretrained(tiny_path()).num_parameters()
    assert info == {
        "modalities": ["text"],
        "attention": "sdpa",
        "engine": "transformers",
        "dtype": "float32",
        "device": "cpu",
        "context": 300,
        "vocab_size": len(tokenizer()),
        "parameters": parameters,
        "template_tools": False,
        "sampling": {},
    }
    assert json.dumps(info)


def test_the_embedded_name_must_be_known() -> None:
    with pytest.raises(LoadError, match="smollm2-135m-instruct"):
        create_engine(ModelSpec(id="m", kind="chat", path="embedded:gpt-5")).load(lambda _fraction, _note: None)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/nowhere/at/all", "there is no directory /nowhere/at/all"),
        ("weights.gguf", "GGUF"),
        ("no-such-owner/no-such-model", "configuration cannot be read"),
    ],
)
def test_a_model_that_is_not_there(path: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LoadError, match=says):
        attempt(spec_of(path))


def edit(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_an_architecture_that_is_unknown_or_no_text_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="configuration cannot be read"):
        attempt(spec_of(edit(copy(tmp_path), model_type="hal9000")))
    with pytest.raises(LoadError, match="'clip'"):
        attempt(spec_of(edit(tmp_path / "model", model_type="clip")))


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"weights are missing.*layers\.2"):
        attempt(spec_of(edit(copy(tmp_path), num_hidden_layers=3, layer_types=["full_attention"] * 3)))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="weights cannot be loaded"):
        attempt(spec_of(tmp_path / "model"))


def test_a_recurrent_model_is_refused_by_name(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "mamba", vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4, expand=2, conv_kernel=4
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(copy(tmp_path))
    with pytest.raises(LoadError, match="'mamba' cannot be batched"):
        attempt(spec_of(tmp_path / "model"))


def test_a_model_that_does_not_say_the_same_over_slots_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Any, store: Any, _new: Any) -> Any:
        return store[:1, :, : self.length]

    monkeypatch.setattr("quintet_chat.engine.slots.Decode.put", forgetful)
    with pytest.raises(LoadError, match="'llama' cannot be batched"):
        attempt(tiny_spec())


def test_engine_args_are_checked() -> None:
    with pytest.raises(LoadError, match="kv_memry: unknown key; did you mean 'kv_memory'"):
        attempt(tiny_spec(engine_args={"kv_memry": "2GB"}))
    with pytest.raises(LoadError, match="no amount of memory"):
        attempt(tiny_spec(engine_args={"kv_memory": "lots"}))


def test_end_tokens_that_are_none_of_the_models_are_passed_over(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    edit(folder, eos_token_id=[-1, 99999, 2])
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert load(spec_of(folder), 4, lambda _fraction, _note: None).eos == {2}


def test_a_context_that_memory_cannot_hold() -> None:
    with pytest.raises(LoadError, match="a context of 512 tokens needs"):
        attempt(tiny_spec(context=512, engine_args={"kv_memory": "100KB"}))
    model = load(tiny_spec(engine_args={"kv_memory": "100KB"}), 4, lambda _fraction, _note: None)
    assert 0 < model.context < 512
    assert model.runner.slots.cells >= model.context


def test_a_memory_limit_places_the_model(tmp_path: Path) -> None:
    engine = started(spec_of(copy(tmp_path), memory={"cpu": "1GB"}))
    assert ask(engine, "the cat", max_tokens=3, ignore_eos=True).tokens() == 3
    with pytest.raises(
        LoadError, match=r"not fit into the memory .*: its weights need [0-9.]+ kB, memory grants 10 kB"
    ):
        attempt(spec_of(tmp_path / "model", memory={"cpu": "10KB"}))


def test_what_gpus_may_hold_is_of_no_account_without_one(tmp_path: Path) -> None:
    load(spec_of(copy(tmp_path), memory={0: "1KB"}), 4, lambda _fraction, _note: None)


def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    from quintet_common.errors import ApiError

    (copy(tmp_path) / "chat_template.jinja").unlink()
    engine = started(spec_of(tmp_path / "model"))
    with pytest.raises(ApiError, match="no chat template") as caught:
        ask(engine, messages=[{"role": "user", "content": "hi"}])
    assert caught.value.param == "messages"


def test_defaults_for_sampling_come_from_the_generation_config(tmp_path: Path) -> None:
    path = copy(tmp_path) / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.7, "top_k": 20}))
    info = load(spec_of(tmp_path / "model"), 4, lambda _fraction, _note: None).info
    assert info["sampling"] == {"temperature": 0.7, "top_k": 20}


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{{ '<tool_call>' }}{{ tools }}", "hermes"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral"),
        ("<|user|><|observation|>", "glm4"),
        ("<|{{ item['role'] }}|>{{ item['metadata'] }}", "glm4"),
        ("Environment: ipython <|python_tag|>", "llama3"),
        ("<tool_call><function=f><parameter=x>", "qwen3_coder"),
        ("<tool_call><function=f>{}", None),
        ("<tool_call>f<tool_sep><arg_key>", None),
        ("<tool_call>f<arg_key></arg_key><arg_value>", "glm47"),
        (TEMPLATE, None),
    ],
)
def test_a_template_gives_its_family_away(template: str, family: str | None) -> None:
    assert families.tool_family(template) == family
    if family is not None:
        from quintet_chat.tools import FAMILIES

        assert family in FAMILIES


def test_keys_and_values_get_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_free", lambda: 8 << 30)
    assert memory.for_cache(cpu, 1 << 20) == memory.LEAST
    assert memory.for_cache(cpu, 2 << 30) == 1 << 30
    assert memory.for_cache(cpu, 100 << 30) == 4 << 30


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_download_that_lacks_its_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_path(kind), tmp_path / "model"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(LoadError, match="tokenizer"):
        attempt(spec_of(folder))


def test_a_text_model_is_none_of_kind_multimodal() -> None:
    with pytest.raises(LoadError, match=r"it is a text model \(llama\), which takes no pictures: kind: chat\."):
        attempt(replace(tiny_spec(), kind="multimodal"))
