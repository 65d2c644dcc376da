"""A GGUF file made by llama.cpp's rules from a model of ours comes back as that model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from chat.engine_kit import SPECIAL, TEMPLATE, reference, tokenizer
from quintet_chat.backends import embedded
from quintet_chat.backends.gguf import UnsupportedGguf, convert, to_bfloat16
from quintet_common.worker.host import LoadError
from transformers import AutoModelForCausalLM, AutoTokenizer

OURS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def permuted(weights: Any, heads: int) -> Any:
    """How llama.cpp's converter orders the rows of query and key projections."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def write(path: Path, architecture: str = "llama", splitting: str = "smollm") -> None:
    model, made = reference("llama"), tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokens = made.convert_ids_to_tokens(range(len(made)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(made.bos_token_id)
    writer.add_eos_token_id(made.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        weights = tensor.to(torch.bfloat16).float().numpy()
        if "q_proj" in name:
            weights = permuted(weights, config.num_attention_heads)
        if "k_proj" in name:
            weights = permuted(weights, config.num_key_value_heads)
        short = name.removeprefix("model.layers.")
        layer = f"blk.{short[0]}." if short != name else ""
        body = short[2:] if layer else name
        writer.add_tensor(f"{layer}{OURS[body.removesuffix('.weight')]}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_converted_model_computes_the_same(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    seen: list[tuple[int, int]] = []
    convert(tmp_path / "tiny.gguf", tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = AutoModelForCausalLM.from_config(reference("llama").config)
    rounded = {name: weights.to(torch.bfloat16).float() for name, weights in reference("llama").state_dict().items()}
    expected.load_state_dict(rounded)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(converted(ids).logits, expected(ids).logits)


def test_the_tokenizer_splits_digits_and_knows_template_and_special_tokens(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "out", lambda _done, _total: None)
    made, original = AutoTokenizer.from_pretrained(tmp_path / "out"), tokenizer()
    assert made("12 cats")["input_ids"][:2] == made("1")["input_ids"] + made("2")["input_ids"]
    text = "hello <|im_start|> the 猫"
    assert made(text)["input_ids"] == original(text)["input_ids"]
    assert made.decode(made(text)["input_ids"], skip_special_tokens=True) == "hello  the 猫"
    assert (made.eos_token, made.bos_token) == (original.eos_token, original.bos_token)
    messages = [{"role": "user", "content": "hi"}]
    assert made.apply_chat_template(messages, tokenize=False) == original.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(("architecture", "splitting"), [("qwen2", "smollm"), ("llama", "gpt-4o")])
def test_a_file_of_another_kind_is_refused_and_leaves_nothing(
    tmp_path: Path, architecture: str, splitting: str
) -> None:
    write(tmp_path / "other.gguf", architecture, splitting)
    with pytest.raises(UnsupportedGguf):
        convert(tmp_path / "other.gguf", tmp_path / "cache" / "out", lambda _done, _total: None)
    assert list((tmp_path / "cache").glob("*")) == []


def test_two_processes_converting_at_once_leave_one_whole_model(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    target = tmp_path / "cache" / "model"
    command = [sys.executable, "-m", "quintet_chat.backends.gguf", str(tmp_path / "tiny.gguf"), str(target)]
    children = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert AutoModelForCausalLM.from_pretrained(target)


def test_a_failed_conversion_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really" * 10)
    monkeypatch.setattr(embedded, "weights", lambda: tmp_path / "broken.gguf")
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(LoadError, match=r"^Converting broken\.gguf failed: .+") as caught:
        embedded.directory(embedded.SMOLLM2, lambda _fraction, _note: None)
    assert "\n" not in str(caught.value)


def test_bfloat16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(0).normal(size=10000).astype(np.float32)
    values[:4] = [0.0, -0.0, 1.00390625, 1.01171875]  # ties, to even
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(to_bfloat16(values), expected)
