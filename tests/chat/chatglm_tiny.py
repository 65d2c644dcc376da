"""GLM-4 in the layout in which it was first published, tiny and random, with a tokenizer in that layout."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TOKENS = 497
"""Of the golden model's vocabulary, which the special tokens follow."""
TEMPLATE = (
    "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>\n# 可用工具"
    "{% for tool in item['tools'] %}\n\n## {{ tool['function']['name'] }}\n\n{{ tool['function'] | tojson(indent=4) }}"
    "{% endfor %}{% endif %}{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The form of the published one."""


def ranks() -> dict[bytes, int]:
    """Every byte, and tokens that are joined from those before them."""
    chooser = random.Random(1)
    tokens = [bytes((byte,)) for byte in range(256)]
    pieces = [b"a", b"b", b" ", b"the", b"t", b"h", b"e", "你".encode()[:2], "你".encode(), b"0", b"\n"]
    tokens += [piece for piece in pieces if piece not in tokens]
    while len(tokens) < TOKENS:
        token = chooser.choice(tokens[97:122] + tokens[256:]) + chooser.choice(tokens[97:122] + tokens[256:])
        if len(token) < 9 and token not in tokens:
            tokens.append(token)
    return {token: rank for rank, token in enumerate(tokens)}


def write_tokenizer(folder: Path) -> None:
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks().items())
    (folder / "tokenizer.model").write_text("".join(lines))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def renamed_back(name: str) -> str:
    for new, old in {
        "model.embed_tokens": "transformer.embedding.word_embeddings",
        "model.layers": "transformer.encoder.layers",
        "model.norm": "transformer.encoder.final_layernorm",
        "lm_head": "transformer.output_layer",
        "self_attn.o_proj": "self_attention.dense",
        "mlp.gate_up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }.items():
        name = name.replace(new, old)
    return name


def as_published(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a Glm as the original layout has them."""
    weights = {"transformer.rotary_pos_emb.inv_freq": torch.ones(4)}
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias")):
            continue
        if "q_proj" in name:
            tensor = torch.cat([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            name = name.replace("self_attn.q_proj", "self_attention.query_key_value")
        weights[renamed_back(name)] = tensor.contiguous()
    return weights


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """The model in two files, its configuration and its tokenizer."""
    names = sorted(weights)
    for number, half in enumerate((names[::2], names[1::2]), 1):
        save_file({name: weights[name] for name in half}, folder / f"model-{number:05}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
