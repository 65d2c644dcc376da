"""GLM-4 in the layout in which it was first published: the same numbers, tokens and prompts as the original's."""

from __future__ import annotations

import json
import os
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from chat import glm4v_tiny
from chat.chatglm_tiny import TOKENS, as_published, ranks, write, write_tokenizer
from chat.engine_kit import ask, started
from quintet_chat.backends import templates
from quintet_chat.backends.chatglm_tokenizer import load_tokenizer
from quintet_chat.backends.loader import load
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from transformers import GlmConfig, GlmForCausalLM

GOLDEN = Path(os.environ.get("QUINTET_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"), "chatglm")
CONFIG: dict[str, Any] = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True,
    "hidden_size": 48, "num_layers": 2, "num_attention_heads": 4, "multi_query_group_num": 2, "kv_channels": 16,
    "ffn_hidden_size": 40, "padded_vocab_size": 512, "layernorm_epsilon": 1e-6, "rope_ratio": 500, "seq_length": 256,
    "rmsnorm": True, "post_layer_norm": True, "original_rope": True, "eos_token_id": [497, 504, 506],
    "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Any:
    """A random Glm of the shape of CONFIG."""
    torch.manual_seed(3)
    config = GlmConfig(
        vocab_size=512, hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, attention_bias=True, max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
        initializer_range=0.4, eos_token_id=[497, 504, 506], pad_token_id=497,
    )  # fmt: skip
    return GlmForCausalLM(config).float().eval()


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in the original layout, in two files."""
    folder = tmp_path_factory.mktemp("glm-4")
    write(folder, CONFIG, as_published(reference))
    return folder


def spec_of(folder: Path, **fields: Any) -> ModelSpec:
    return ModelSpec(id="glm", kind="chat", path=str(folder), dtype="float32", device="cpu", **fields)


def attempt(folder: Path) -> Any:
    return load(spec_of(folder), 4, lambda _fraction, _note: None)


def test_the_converted_model_is_the_same_model(folder: Path, reference: Any) -> None:
    engine = started(spec_of(folder))
    prompt = [499, 501, 504, 10, 300, 40, 41]
    ids = reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=511)
    heard = ask(engine, prompt, max_tokens=12, temperature=0, ignore_eos=True, logprobs=1)
    said = [logprob.token for delta in heard.deltas() for logprob in delta.logprobs]
    assert said == [engine._output._token_text(token)[0] for token in ids[0, len(prompt) :].tolist()]
    assert engine.info["tool_family"] == "glm4"  # type: ignore[attr-defined]


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden data is not beside the checkout; set QUINTET_GOLDEN")
@pytest.mark.parametrize("sees", [False, True], ids=["glm-4", "glm-4v"])
def test_probabilities_are_those_of_the_original(tmp_path: Path, sees: bool) -> None:
    folder = Path(shutil.copytree(GOLDEN / "model", tmp_path / "model", copy_function=shutil.copyfile))
    folder.chmod(0o755)
    write_tokenizer(folder)
    if sees:
        glm4v_tiny.give_eyes(folder)
    model = attempt(folder).runner._model
    for case in json.loads((GOLDEN / "golden.json").read_text())["cases"]:
        ids, new = case["prompt_ids"], case["greedy_ids"]
        with torch.inference_mode():
            table = model(torch.tensor([ids + new])).logits[0].log_softmax(-1)
        rows = [(at - 1, row) for at, row in enumerate(case["prompt_logprobs"]) if row]
        rows += [(len(ids) - 1 + step, row) for step, row in enumerate(case["greedy_logprobs"])]
        assert max(abs(table[at, token].item() - value) for at, row in rows for token, value, _ in row) < 2e-4
        assert table[len(ids) - 1 : -1].argmax(-1).tolist() == new


def encoded_as_defined(text: bytes) -> list[int]:
    """Byte pair encoding by its definition."""
    table, parts = ranks(), [bytes((byte,)) for byte in text]
    while True:
        joins = [(table[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in table]
        if text in table or not joins:
            return [table[text]] if text in table else [table[part] for part in parts]
        _, at = min(joins)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_tokens_are_joined_in_the_order_of_their_ranks(folder: Path) -> None:
    tokenizer = load_tokenizer("glm", folder)
    chooser = random.Random(2)
    for _ in range(200):
        word = "".join(chooser.choice("abcdefgthe") for _ in range(chooser.randint(1, 12)))
        assert tokenizer.encode(word) == encoded_as_defined(word.encode())


@pytest.mark.parametrize("text", ["Don't  stop\n\n 12345 你好！", "🙂\t~", " x", "a\r\nb ", ""])
def test_text_comes_back_as_it_was(folder: Path, text: str) -> None:
    tokenizer = load_tokenizer("glm", folder)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    words = [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("it's 12345 ok!\n x")]
    assert words == ["it", "'s", "Ġ", "123", "45", "Ġok", "!Ċ", "Ġx"]


def test_special_tokens_follow_the_ranks(folder: Path) -> None:
    tokenizer = load_tokenizer("glm", folder)
    assert tokenizer.encode("[gMASK]<sop><|user|>\na<|assistant|>")[:3] == [TOKENS + 2, TOKENS + 4, TOKENS + 7]
    assert tokenizer.convert_tokens_to_ids("<|observation|>") == TOKENS + 9
    assert tokenizer.convert_tokens_to_ids("<|end_of_video|>") == TOKENS + 13


def test_a_conversation_with_tools_is_written_as_the_model_learnt_it(folder: Path) -> None:
    tokenizer = load_tokenizer("glm", folder)
    tokenizer.chat_template = templates.in_openai_form(tokenizer.chat_template)
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "巴黎"}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    assert text == (
        '[gMASK]<sop><|system|>\n# 可用工具\n## get_weather\n\n{\n    "name": "get_weather"\n}'
        '<|system|>\nBe kind.<|user|>\nWeather?<|assistant|>get_weather\n{"city": "巴黎"}'
        "<|observation|>\nsunny<|assistant|>"
    )
    plain = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert plain == "[gMASK]<sop><|system|>\nBe kind.<|user|>\nWeather?<|assistant|>"


def test_the_earliest_revision_has_no_template(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.model", tmp_path)
    tokenizer = load_tokenizer("glm", tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "[gMASK]<sop><|user|>\nhi<|assistant|>"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"original_rope": False}, "original_rope: False"),
        ({"kv_channels": None}, "lacks 'kv_channels'"),
        ({"num_layers": 3}, "weights are missing"),
    ],
)
def test_what_it_cannot_be(folder: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    config = {name: value for name, value in (CONFIG | change).items() if value is not None}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=says):
        attempt(copy)


def test_files_that_are_missing_or_broken(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / "tokenizer.model").write_text("YQ== 0\n")
    with pytest.raises(LoadError, match="no whole vocabulary"):
        attempt(copy)
    (copy / "tokenizer.model").write_text("not base64 at all\n")
    with pytest.raises(LoadError, match="no file of tokens"):
        attempt(copy)
    (copy / "tokenizer.model").unlink()
    with pytest.raises(LoadError, match=r"tokenizer\.model is missing"):
        attempt(copy)
    write_tokenizer(copy)
    shard = copy / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:900])
    with pytest.raises(LoadError, match="cannot be read"):
        attempt(copy)
    for file in copy.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(LoadError, match="pickled weights are not read"):
        attempt(copy)
