"""A tiny random glm-4v-9b in its original layout, and what it makes of pictures, in plain torch.

The names, and the mathematics that the published model is known by: post-norm blocks over patches and one more place, a
convolution that makes one of four, a gated projection, a learned vector before and behind, all divided by a factor.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chat.chatglm_tiny import TOKENS, as_published
from chat.chatglm_tiny import write as write_model
from PIL import Image
from quintet_chat.backends.glm4v import Eyes, VisionTower
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import GlmConfig, GlmForCausalLM

END, BEGIN_IMAGE, END_IMAGE = TOKENS, TOKENS + 10, TOKENS + 11
SIZE = 112
"""Pixels of a picture's side, eight patches."""

PLACES = (SIZE // 28) ** 2
MARKS = "<|begin_of_image|><|endoftext|><|end_of_image|>"
_WIDTH, _TEXT, _FFN, _HEADS = 64, 128, 96, 2
VISION: dict[str, Any] = {
    "image_size": SIZE, "patch_size": 14, "num_positions": 65, "hidden_size": _WIDTH, "num_hidden_layers": 2,
    "num_heads": _HEADS, "intermediate_size": 80, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "in_channels": 3,
    "dropout_prob": 0.0, "scaling_factor": 8,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True,
    "hidden_size": _TEXT, "num_layers": 2, "num_attention_heads": 4, "multi_query_attention": True,
    "multi_query_group_num": 2, "kv_channels": 32, "ffn_hidden_size": _FFN, "padded_vocab_size": 512,
    "layernorm_epsilon": 1e-6, "rope_ratio": 1, "seq_length": 512, "rmsnorm": True, "post_layer_norm": True,
    "original_rope": True, "eos_token_id": [497, 504, 506], "pad_token_id": END, "boi_token_id": BEGIN_IMAGE,
    "eoi_token_id": END_IMAGE, "torch_dtype": "float32", "vision_config": VISION,
    "tie_word_embeddings": False,
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": "modeling_chatglm.ChatGLMModel"},
}  # fmt: skip
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def text_model() -> Any:
    torch.manual_seed(7)
    config = GlmConfig(
        vocab_size=512, hidden_size=_TEXT, intermediate_size=_FFN, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6, attention_bias=True, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        initializer_range=0.2, eos_token_id=[497, 504, 506], pad_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    return GlmForCausalLM(config).float().eval()


def tower_weights() -> dict[str, torch.Tensor]:
    """By their names under ``transformer.vision.``."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.proj.weight": (_WIDTH, 3, 14, 14), "patch_embedding.proj.bias": (_WIDTH,),
        "patch_embedding.cls_embedding": (1, _WIDTH), "patch_embedding.position_embedding.weight": (65, _WIDTH),
        "conv.weight": (_TEXT, _WIDTH, 2, 2), "conv.bias": (_TEXT,), "linear_proj.linear_proj.weight": (_TEXT, _TEXT),
        "linear_proj.norm1.weight": (_TEXT,), "linear_proj.norm1.bias": (_TEXT,),
        "linear_proj.gate_proj.weight": (_FFN, _TEXT), "linear_proj.dense_h_to_4h.weight": (_FFN, _TEXT),
        "linear_proj.dense_4h_to_h.weight": (_TEXT, _FFN), "boi": (1, 1, _TEXT), "eoi": (1, 1, _TEXT),
    }  # fmt: skip
    for layer in range(2):
        for name, shape in {
            "input_layernorm": (_WIDTH,), "post_attention_layernorm": (_WIDTH,),
            "attention.query_key_value": (3 * _WIDTH, _WIDTH), "attention.dense": (_WIDTH, _WIDTH),
            "mlp.fc1": (80, _WIDTH), "mlp.fc2": (_WIDTH, 80),
        }.items():  # fmt: skip
            shapes[f"transformer.layers.{layer}.{name}.weight"] = shape
            shapes[f"transformer.layers.{layer}.{name}.bias"] = shape[:1]
    drawn = torch.Generator().manual_seed(8)
    return {name: torch.randn(shape, generator=drawn) * 0.3 for name, shape in shapes.items()}


def write(folder: Path, text: Any) -> None:
    """The model in ``folder``, with ``text`` for its text."""
    tower = {f"transformer.vision.{name}": tensor for name, tensor in tower_weights().items()}
    write_model(folder, CONFIG, as_published(text) | tower)


def give_eyes(folder: Path) -> None:
    """A tower for the text model in ``folder``, of another width than that of ``CONFIG``."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    tower = VisionTower(Eyes.of(VISION), config["hidden_size"], config["ffn_hidden_size"])
    weights = {f"transformer.vision.{name}": tensor for name, tensor in tower.state_dict().items()}
    save_file(weights, folder / "tower.safetensors")
    more = {name: CONFIG[name] for name in ("vision_config", "boi_token_id", "eoi_token_id")}
    file.write_text(json.dumps(config | more))


def picture(number: int = 1, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """Noise; each number has a picture of its own."""
    drawn = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), "uint8")
    return Image.fromarray(drawn)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def seen(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """The vectors [places + 2, text] that stand for a picture; ``pixels`` are [height, width, 3], 0 to 255."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    picture = ((pixels / 255 - _MEAN) / _STD).permute(2, 0, 1)
    x = F.conv2d(picture, weights["patch_embedding.proj.weight"], weights["patch_embedding.proj.bias"], stride=14)
    x = torch.cat([weights["patch_embedding.cls_embedding"], x.flatten(1).T])
    x = x + weights["patch_embedding.position_embedding.weight"]
    for layer in range(2):
        at = f"transformer.layers.{layer}"
        q, k, v = (
            part.view(len(x), _HEADS, -1).transpose(0, 1)
            for part in linear(x, f"{at}.attention.query_key_value").chunk(3, -1)
        )
        attended = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1) @ v
        attended = linear(attended.transpose(0, 1).flatten(1), f"{at}.attention.dense")
        x = x + norm(attended, f"{at}.input_layernorm", 1e-6)
        inner = linear(F.gelu(linear(x, f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
        x = x + norm(inner, f"{at}.post_attention_layernorm", 1e-6)
    grid = x[1:].T.reshape(_WIDTH, SIZE // 14, SIZE // 14)
    x = F.conv2d(grid, weights["conv.weight"], weights["conv.bias"], stride=2).flatten(1).T
    x = F.gelu(norm(linear(x, "linear_proj.linear_proj"), "linear_proj.norm1", 1e-5))
    x = F.silu(linear(x, "linear_proj.gate_proj")) * linear(x, "linear_proj.dense_h_to_4h")
    x = linear(x, "linear_proj.dense_4h_to_h")
    return torch.cat([weights["boi"][0], x, weights["eoi"][0]]) / VISION["scaling_factor"]


def positions(short: list[int], *, in_turn: bool = False) -> list[int]:
    """Of the tokens of ``short`` once the three that begin with BEGIN_IMAGE are the places of a picture.

    The original numbers the three, and each place that comes in between has the number of the one in the middle;
    ``in_turn`` counts the places instead, as vLLM does it.
    """
    if BEGIN_IMAGE not in short or in_turn:
        return list(range(len(short) + (PLACES - 1 if BEGIN_IMAGE in short else 0)))
    middle = short.index(BEGIN_IMAGE) + 1
    return [*range(middle), *[middle] * PLACES, *range(middle + 1, len(short))]


def greedy(
    text: Any, short: list[int], image: Image.Image | None, count: int, *, in_turn: bool = False
) -> tuple[list[int], torch.Tensor]:
    """Tokens behind ``short``, and the logarithms of their probabilities: all is computed anew for each.

    ``image``, of the size of the tower's pictures, takes the place of the three tokens that begin with BEGIN_IMAGE.
    """
    embed, said, rows = text.get_input_embeddings(), [], []
    with torch.inference_mode():
        vectors = None if image is None else seen(tower_weights(), torch.from_numpy(np.array(image)).float())
        for _ in range(count):
            whole = [*short, *said]
            x = embed(torch.tensor(whole))
            if vectors is not None:
                at = whole.index(BEGIN_IMAGE)
                x = torch.cat([x[:at], vectors, x[at + 3 :]])
            places = torch.tensor([positions(whole, in_turn=in_turn)])
            mask = torch.ones_like(places)
            row = text(inputs_embeds=x[None], position_ids=places, attention_mask=mask).logits[0, -1].log_softmax(-1)
            said.append(int(row.argmax()))
            rows.append(row.max())
    return said, torch.stack(rows)
