"""A tiny random MiniCPM-V-2_6 in its own layout, and what it makes of pictures, in plain torch.

A SigLIP tower whose positions are taken from a table of 70 x 70 by how far along the picture a patch is; a resampler of
64 learned queries over it, with positions on the keys alone; a Qwen2.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from chat.engine_kit import tokenizer
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

MARKS = ["<unk>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>"]
_WIDTH, _TEXT, _HEADS, _FFN = 64, 128, 2, 96
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def made_tokenizer() -> Any:
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": MARKS, "unk_token": "<unk>", "bos_token": "<|im_start|>"})
    made.chat_template = TEMPLATE
    return made


def text_model() -> Any:
    torch.manual_seed(11)
    made = made_tokenizer()
    config = transformers.Qwen2Config(
        vocab_size=len(made), hidden_size=_TEXT, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=4096, tie_word_embeddings=False,
        eos_token_id=made.eos_token_id, bos_token_id=made.bos_token_id,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).float().eval()


def vision_weights() -> dict[str, torch.Tensor]:
    """By their names in the checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "vpm.embeddings.patch_embedding.weight": (_WIDTH, 3, 14, 14), "vpm.embeddings.patch_embedding.bias": (_WIDTH,),
        "vpm.embeddings.position_embedding.weight": (4900, _WIDTH), "vpm.post_layernorm.weight": (_WIDTH,),
        "vpm.post_layernorm.bias": (_WIDTH,), "resampler.query": (64, _TEXT), "resampler.proj": (_TEXT, _TEXT),
        "resampler.kv_proj.weight": (_TEXT, _WIDTH), "resampler.attn.in_proj_weight": (3 * _TEXT, _TEXT),
        "resampler.attn.in_proj_bias": (3 * _TEXT,), "resampler.attn.out_proj.weight": (_TEXT, _TEXT),
        "resampler.attn.out_proj.bias": (_TEXT,),
    }  # fmt: skip
    for name in ("ln_q", "ln_kv", "ln_post"):
        shapes |= {f"resampler.{name}.weight": (_TEXT,), f"resampler.{name}.bias": (_TEXT,)}
    for layer in range(2):
        for name, shape in {
            "layer_norm1": (_WIDTH,), "layer_norm2": (_WIDTH,), "mlp.fc1": (_FFN, _WIDTH), "mlp.fc2": (_WIDTH, _FFN),
            **{f"self_attn.{letter}": (_WIDTH, _WIDTH) for letter in ("q_proj", "k_proj", "v_proj", "out_proj")},
        }.items():  # fmt: skip
            shapes[f"vpm.encoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"vpm.encoder.layers.{layer}.{name}.bias"] = shape[:1]
    drawn = torch.Generator().manual_seed(12)
    return {name: torch.randn(shape, generator=drawn) * 0.25 for name, shape in shapes.items()}


def write(folder: Path, model: Any) -> None:
    made = made_tokenizer()
    made.save_pretrained(folder)
    given = json.loads((folder / "tokenizer_config.json").read_text())
    given |= {
        "tokenizer_class": "MiniCPMVTokenizerFast",
        "auto_map": {"AutoTokenizer": ["tokenization_minicpmv_fast.MiniCPMVTokenizerFast", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    text = {f"llm.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(text | vision_weights(), folder / "model.safetensors", {"format": "pt"})
    config = model.config.to_dict() | {
        "model_type": "minicpmv", "architectures": ["MiniCPMV"], "version": 2.6, "query_num": 64, "image_size": 448,
        "drop_vision_last_layer": False, "use_image_id": True, "slice_mode": True, "batch_vision_input": True,
        "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"},
        "vision_config": {
            "hidden_size": _WIDTH, "image_size": 980, "intermediate_size": _FFN, "num_attention_heads": _HEADS,
            "num_hidden_layers": 2, "patch_size": 14, "model_type": "siglip_vision_model",
        },
        "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMVConfig", "AutoModel": "modeling_minicpmv.MiniCPMV"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = {
        "image_processor_type": "MiniCPMVImageProcessor", "processor_class": "MiniCPMVProcessor", "max_slice_nums": 9,
        "scale_resolution": 448, "patch_size": 14, "use_image_id": True, "image_feature_size": 64,
        "auto_map": {
            "AutoProcessor": "processing_minicpmv.MiniCPMVProcessor",
            "AutoImageProcessor": "image_processing_minicpmv.MiniCPMVImageProcessor",
        },
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def seen(weights: dict[str, torch.Tensor], picture: Image.Image) -> torch.Tensor:
    """The 64 vectors [64, text] that stand for one part, whose sides are whole patches."""
    rows, columns = picture.height // 14, picture.width // 14
    pixels = torch.from_numpy(np.array(picture)).float().permute(2, 0, 1) / 127.5 - 1
    return _resampled(weights, _tower(weights, pixels, rows, columns), rows, columns)


def _tower(weights: dict[str, torch.Tensor], pixels: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"vpm.{name}.weight"], weights[f"vpm.{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"vpm.{name}.weight"], weights[f"vpm.{name}.bias"], 1e-6)

    patch = "vpm.embeddings.patch_embedding"
    x = F.conv2d(pixels, weights[f"{patch}.weight"], weights[f"{patch}.bias"], stride=14).flatten(1).T
    down, right = ([int(70 * at / count + 1e-6) for at in range(count)] for count in (rows, columns))
    places = torch.tensor([70 * row + column for row in down for column in right])
    x = x + weights["vpm.embeddings.position_embedding.weight"][places]
    for layer in range(2):
        at = f"encoder.layers.{layer}"
        y = norm(x, f"{at}.layer_norm1")
        q, k, v = (
            linear(y, f"{at}.self_attn.{letter}_proj").view(len(x), _HEADS, -1).transpose(0, 1) for letter in "qkv"
        )
        y = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + linear(y.transpose(0, 1).flatten(1), f"{at}.self_attn.out_proj")
        y = F.gelu(linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1"), approximate="tanh")
        x = x + linear(y, f"{at}.mlp.fc2")
    return norm(x, "post_layernorm")


def _resampled(weights: dict[str, torch.Tensor], x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        of = f"resampler.{name}"
        return F.layer_norm(x, x.shape[-1:], weights[f"{of}.weight"], weights[f"{of}.bias"], 1e-6)

    values = norm(x @ weights["resampler.kv_proj.weight"].T, "ln_kv")
    places = [torch.cat([_waves(column), _waves(row)]) for row in range(rows) for column in range(columns)]
    keys, queries = values + torch.stack(places), norm(weights["resampler.query"], "ln_q")
    parts = zip(
        (queries, keys, values),
        weights["resampler.attn.in_proj_weight"].chunk(3),
        weights["resampler.attn.in_proj_bias"].chunk(3),
        strict=True,
    )
    q, k, v = (F.linear(part, weight, bias) for part, weight, bias in parts)  # one head of 128
    attended = ((q @ k.T) / math.sqrt(_TEXT)).softmax(-1) @ v
    out = F.linear(attended, weights["resampler.attn.out_proj.weight"], weights["resampler.attn.out_proj.bias"])
    return norm(out, "ln_post") @ weights["resampler.proj"]


def _waves(at: int) -> torch.Tensor:
    quarter = _TEXT // 4
    angles = at / 10_000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    return torch.cat([angles.sin(), angles.cos()]).float()
