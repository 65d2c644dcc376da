"""ZLAI's ``models_config.yml`` in Quintet's terms, and its mistakes in its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from quintet_common.models_yml import ConfigError, ModelSpec, parse_config
from quintet_common.zlai_config import METHODS, TYPES

FILE = Path("models.yml")


def test_zlai_example_file() -> None:
    text = """
models_config:
  - model_name: Qwen2-0.5B-Instruct
    model_path: /home/models/Qwen/Qwen2-0.5B-Instruct
    model_type: completion
    load_method: load_qwen2
    max_memory:
      0: "2GB"
  - model_name: bge-m3
    model_path: /home/models/bge-m3
    model_type: embedding
"""
    chat, embedding = parse_config(text, FILE).models
    assert chat == ModelSpec(
        id="Qwen2-0.5B-Instruct",
        kind="chat",
        path="/home/models/Qwen/Qwen2-0.5B-Instruct",
        memory={0: "2GB"},
        owned_by="Open Source",
    )
    assert embedding.kind == "embedding"


@pytest.mark.parametrize(
    ("name", "model_type", "method", "kind"),
    [
        ("Qwen2-7B-Instruct", "completion", "load_qwen2", "chat"),
        ("Qwen2-57B-A14B-Instruct-GPTQ-Int4", "completion", "load_qwen2", "chat"),
        ("glm-4-9b-chat-1m", "completion", "load_glm4", "chat"),
        ("glm-4v-9b", "completion", "load_glm4", "multimodal"),
        ("MiniCPM-V-2_6", "completion", "load_mini_cpm", "multimodal"),
        ("Qwen2-VL-7B-Instruct", "completion", "load_qwen2", "multimodal"),
        ("Kolors-diffusers", "diffuser", "load_kolors_diffusers", "image"),
        ("Kolors-image2image", "completion", "load_kolors_image2image", "image"),
        ("CosyVoice-300M-SFT", "audio", "load_cosy_voice", "tts"),
        ("bge-m3", "embedding", "load_embedding", "embedding"),
        ("bge-m3", "embedding", None, "embedding"),
    ],
)
def test_zlai_kinds(name: str, model_type: str, method: str | None, kind: str) -> None:
    entry = f"{{model_name: {name}, model_path: /models/{name}, model_type: {model_type}, generate_method: X"
    text = f"models_config:\n- {entry}{'' if method is None else f', load_method: {method}'}}}"
    assert [(spec.id, spec.kind) for spec in parse_config(text, FILE).models] == [(name, kind)]


def test_a_zlai_entry_with_a_load_method_alone_is_told_how_methods_begin() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("models_config:\n- model_name: a\n  model_path: x\n  load_method: embedding", FILE)
    assert str(caught.value).startswith("models.yml:4: load_method: 'embedding' is not one of load_glm4v…, ")
    assert str(caught.value).endswith("; did you mean 'load_embedding…'?")


def test_every_load_method_that_is_known_is_documented() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "config.md").read_text()
    assert [word for word in (*METHODS, *TYPES) if f"`{word}`" not in text] == []


def test_zlai_mistakes_have_their_line_too() -> None:
    with pytest.raises(ConfigError, match=r"models.yml:5: unknown key 'max_memry'"):
        parse_config("models_config:\n- model_name: a\n  model_path: x\n  model_type: completion\n  max_memry: 1", FILE)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("model_type: completion\n  max_memry: {0: 2GB}", "5: unknown key 'max_memry'; did you mean 'max_memory'?"),
        ("model_type: completion\n  load_metod: load_qwen", "5: unknown key 'load_metod'; did you mean 'load_method'?"),
        ("load_metod: load_qwen2", "4: unknown key 'load_metod'; did you mean 'load_method'?"),
        ("model_type: completion\n  keap: always", "5: unknown key 'keap'; did you mean 'keep'?"),
        ("max_batch: 4", "2: the key 'model_type' is missing."),
        (
            "model_type: completion\n  max_memory: 2",
            "5: max_memory: expected keys with values, got a whole number; write",
        ),
        (
            "model_type: audio\n  max_memory: {0: 20}",
            "5: max_memory: expected text, got a whole number; write it like {0",
        ),
        ("model_type: [audio]", "4: model_type: expected text, got a list."),
        ("model_type: audio\n  load_method: 7", "5: load_method: expected text, got a whole number."),
        ("model_type:", "2: the key 'model_type' is missing."),
        ("model_type: audio\n  id: b", "2: model_name: 'model_name' says the same, leave one of them out."),
        ("model_type: audio\n  max_memory: {0: much}", "5: max_memory: 'much' is no amount of memory"),
    ],
)
def test_zlai_mistakes_are_told_in_zlai_s_words(entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"models_config:\n- model_name: a\n  model_path: x\n  {entry}", FILE)
    assert str(caught.value).startswith(f"models.yml:{message}")
    assert "\n" not in str(caught.value)


def test_all_mistakes_of_a_zlai_file_are_told_at_once() -> None:
    first = "- model_nam: a\n  model_path: x\n  model_type: completion"
    second, third = (
        "- {model_name: b, model_path: x, model_type: compltion}",
        "- {model_name: c, model_path: x, keap: 1}",
    )
    with pytest.raises(ConfigError) as caught:
        parse_config("\n".join(["models_config:", first, second, third]), FILE)
    assert [line.split("; did")[1] for line in str(caught.value).splitlines()] == [
        " you mean 'model_name'?",
        " you mean 'completion'?",
        " you mean 'keep'?",
    ]


def test_models_of_both_dialects_in_one_file_are_refused() -> None:
    """Those of ``models`` were left out without a word."""
    one, other = "models:\n- {id: a, kind: chat, path: x}\n", "models_config: []\n"
    with pytest.raises(ConfigError, match="models_config is in this file too; all models go under one of the two"):
        parse_config(one + other, FILE)
