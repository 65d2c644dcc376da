"""Turns a Llama-architecture GGUF file into a directory that transformers loads: weights, tokenizer, chat template.

Run as ``python -m quintet_chat.backends.gguf SOURCE TARGET`` so that the memory of reading (parsed metadata,
dequantised tensors) goes back with the process. It prints one line, ``DONE TOTAL``, per tensor. Needs neither torch
nor transformers.

Weights are written as bfloat16. The file layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
and of https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN = 3
"""The token type of ``tokenizer.ggml.token_type`` that is never ordinary text."""

_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class UnsupportedGguf(Exception):
    """The file is none that this converter understands; the text says what is different."""


def convert(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Write ``target`` as a transformers model directory; it appears whole or not at all.

    ``progress`` is called with the number of tensors done and their total. When another process has written the target
    meanwhile, that one stays. Raises UnsupportedGguf and OSError.
    """
    reader = GGUFReader(source)
    fields = _Fields(reader)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
        config = _config(fields, tied)
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id")})
        _write_tokenizer(fields, folder)
        _write_weights(reader, config, folder / "model.safetensors", progress)
        try:
            os.rename(folder, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Fields:
    """The file's metadata by name."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields
        self.architecture = str(self["general.architecture"])
        if self.architecture != "llama":
            raise UnsupportedGguf(f"the architecture is {self.architecture!r}, only 'llama' is supported")

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields:
            raise UnsupportedGguf(f"the key {name!r} is missing")
        return self._fields[name].contents()

    def get(self, name: str, default: Any) -> Any:
        return self[name] if name in self._fields else default


def _config(fields: _Fields, tied: bool) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": fields.get("llama.rope.freq_base", 10000.0)},
        "tie_word_embeddings": tied,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id", None),
    }


def _write_tokenizer(fields: _Fields, folder: Path) -> None:
    kind = (fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default"))
    if kind != ("gpt2", "smollm"):
        raise UnsupportedGguf(f"the tokenizer is {kind[0]!r} with splitting rule {kind[1]!r}, not 'gpt2' with 'smollm'")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = fields.get(f"tokenizer.ggml.{key}_token_id", None)
        if index is not None:
            settings[f"{role}_token"] = tokens[index]
    _write_json(folder / "tokenizer_config.json", settings)
    if template := fields.get("tokenizer.chat_template", None):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_weights(
    reader: GGUFReader, config: dict[str, Any], path: Path, progress: Callable[[int, int], None]
) -> None:
    """Write the safetensors file one tensor at a time, so that one tensor at a time is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        size = 2 * int(np.prod(shape))
        header[_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for done, tensor in enumerate(reader.tensors, 1):
            weights = dequantize(tensor.data, tensor.tensor_type)
            if tensor.name.endswith("attn_q.weight"):
                weights = _rotary_order(weights, config["num_attention_heads"])
            elif tensor.name.endswith("attn_k.weight"):
                weights = _rotary_order(weights, config["num_key_value_heads"])
            file.write(to_bfloat16(weights).tobytes())
            progress(done, len(reader.tensors))


def _name(name: str) -> str:
    """A tensor's name in transformers' Llama."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _NAMES:
        raise UnsupportedGguf(f"the tensor {name!r} is not part of a Llama model")
    return f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.{parts[3]}"


def _rotary_order(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection from GGUF's order to transformers'.

    GGUF has the two halves of each rotated pair side by side, transformers has all first halves before all second ones.
    """
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite floats as bfloat16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def main(source: str, target: str) -> int:
    def progress(done: int, total: int) -> None:
        sys.stdout.write(f"{done} {total}\n")
        sys.stdout.flush()

    try:
        convert(Path(source), Path(target), progress)
    except (UnsupportedGguf, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
