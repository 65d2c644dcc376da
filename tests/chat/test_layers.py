"""Layers with fewer operations: the same numbers, and nothing replaced that computes anything else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from chat.engine_kit import SHAPE, reference
from quintet_chat.backends import hugepages, packing
from quintet_chat.backends.layers import FusedLayer, fuse
from quintet_chat.engine.runner import Piece, Runner

PROMPT = [3 + (7 * i) % 250 for i in range(70)]
BUILDS: dict[str, dict[str, Any]] = {
    "phi3": {"pad_token_id": 0},
    "phi3-partial": {"pad_token_id": 0, "partial_rotary_factor": 0.5},
    "granite": {"residual_multiplier": 0.22},
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": 0},
    "ernie4_5": {},
    "olmo2": {},
    "exaone4": {"sliding_window": 8, "sliding_window_pattern": 2},
}
"""What ``engine_kit`` has not: weights that are joined already, a share of what is added, layers without positions."""
OTHERS: dict[str, dict[str, Any]] = {
    "cohere": {},
    "olmo": {"clip_qkv": 0.5},
    "ministral3": {"rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 128,
    }},
}  # fmt: skip
"""Parts of the same names, put together otherwise: side by side, clipped, scaled by their places behind the 128th."""


@pytest.fixture(autouse=True)
def _capable() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16")


def random_model(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind.split("-")[0], vocab_size=330, **SHAPE, **fields)
    return transformers.AutoModelForCausalLM.from_config(config).bfloat16().eval()


def logits(model: Any) -> list[torch.Tensor]:
    """Of a prompt in two pieces and of two steps for one sequence, then of a step for two."""
    runner = Runner(model, 2, 256, 512)
    runner.slots.reserve([100, 100])
    runner.prefill(0, [Piece(0, PROMPT[:40])])
    found = [runner.prefill(0, [Piece(40, PROMPT[40:])]), *(runner.decode([5 + i], [70 + i]) for i in range(2))]
    runner.prefill(1, [Piece(0, PROMPT[:9])])
    return [*found, runner.decode([5, 6], [72, 9])]


@pytest.mark.parametrize(
    "kind",
    ["llama", "mistral", "qwen2", "qwen2-half-sliding", "qwen3", "glm", "glm4", "gemma3_text", *BUILDS],
)
@torch.inference_mode()
def test_a_fused_model_says_the_same(kind: str) -> None:
    model = random_model(kind, **BUILDS[kind]) if kind in BUILDS else copy.deepcopy(reference(kind)).bfloat16()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # new models have zeros and ones there
            parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    plain = logits(model)
    assert fuse(model) == 2
    packing.finish(model, lambda: None)
    assert all(type(layer) is FusedLayer for layer in model.model.layers)
    for ours, theirs in zip(logits(model), plain, strict=True):
        assert torch.cosine_similarity(ours, theirs).min() > 0.9995


@torch.inference_mode()
def test_experts_stay_behind_attention_that_is_replaced() -> None:
    model = copy.deepcopy(reference("qwen2_moe")).bfloat16()
    experts, plain = [layer.mlp for layer in model.model.layers], logits(model)
    assert fuse(model) == 2
    assert [layer.feed for layer in model.model.layers] == experts
    packing.finish(model, lambda: None)
    for ours, theirs in zip(logits(model), plain, strict=True):
        assert torch.cosine_similarity(ours, theirs).min() > 0.999


@pytest.mark.parametrize(("kind", "fields"), OTHERS.items())
def test_what_computes_something_else_is_left(kind: str, fields: dict[str, Any]) -> None:
    model = random_model(kind, **fields)
    kept = list(model.model.layers)
    assert fuse(model) == 0
    assert list(model.model.layers) == kept


def asks_for_attention(model: Any, _: Any) -> None:
    assert all(layer.self_attn.head_dim == 16 for layer in model.model.layers)


def test_hooks_float32_and_other_attention_are_left() -> None:
    assert fuse(copy.deepcopy(reference("llama"))) == 0
    hooked = random_model("llama")
    hooked.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: None)
    assert fuse(hooked) == 1
    asked = random_model("llama")
    asked.register_forward_pre_hook(asks_for_attention)
    assert fuse(asked) == 0  # ours has no such module
    assert all(hasattr(layer, "self_attn") for layer in asked.model.layers)
    eager = random_model("llama")
    eager.set_attn_implementation("eager")
    assert fuse(eager) == 0


def test_a_layer_is_measured_by_what_it_says_not_by_its_name() -> None:
    """A model whose class is usual and whose attention was changed from outside."""
    model = random_model("llama")
    model.model.layers[1].self_attn.scaling *= 2
    assert fuse(model) == 2  # it is an attribute that we read as well
    model = random_model("llama")
    model.model.layers[1].input_layernorm.forward = lambda hidden: hidden * 2
    assert fuse(model) == 1


def test_weights_side_by_side_are_one_stretch_of_huge_pages() -> None:
    size = hugepages.SIZE
    memory = torch.zeros(5 * size, dtype=torch.uint8)
    memory[size + 17] = 3
    begin = memory.data_ptr()
    advised = hugepages.advise([(begin + size, 2 * size), (begin, size - 100), (begin + 3 * size + 10, size)])
    assert advised in (0, 3 * size, 4 * size)  # none but on Linux
    assert hugepages.advise([(begin, size - 1), (begin + 3 * size, 4096)]) == 0
    assert memory[size + 17] == 3
    assert memory.sum() == 3
