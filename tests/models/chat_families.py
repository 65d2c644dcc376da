"""Families of chat models: a published one of each, and a tiny random one of the same architecture."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from chat.engine_kit import SHAPE, TEMPLATE, tokenizer
from quintet_chat.backends.time_steps import settle_limits


@dataclass(frozen=True, eq=False)
class Family:
    """``parameters`` are those of the published model that are loaded, in thousand millions, as its makers say or its
    configuration gives them.

    ``mark`` is what its chat template is known by, and ``tools`` the family of calls that this means.
    """

    name: str
    architecture: str
    example: str
    parameters: float
    config: dict[str, Any] = field(default_factory=dict)
    mark: str = ""
    tools: str | None = None
    thinking: str | None = None
    refused: str | None = None
    """What the reason contains with which it is not loaded; None: it is, and says what ``generate`` says."""


_HEADS16 = {"head_dim": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
_LATENT = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_INDEXED = {"index_topk": 8, "index_n_heads": 16, "index_head_dim": 16}
_RECURRENT = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_GATED_EXPERTS = {**_HEADS16, **_EXPERTS, **_RECURRENT, "shared_expert_intermediate_size": 32}
_SLIDING = {"sliding_window": 8, **_HEADS16}

FAMILIES = (
    Family("Qwen2, Qwen2.5", "qwen2", "Qwen/Qwen2.5-7B-Instruct", 7.62, mark="<tool_call>", tools="hermes"),
    Family("Qwen2 MoE", "qwen2_moe", "Qwen/Qwen2-57B-A14B-Instruct", 57.41,
           {**_EXPERTS, "shared_expert_intermediate_size": 64}, "<tool_call>", "hermes"),
    Family("Qwen3", "qwen3", "Qwen/Qwen3-8B", 8.19, _HEADS16, "<tool_call><think>", "hermes", "think"),
    Family("Qwen3 MoE", "qwen3_moe", "Qwen/Qwen3-30B-A3B-Instruct-2507", 30.53, {**_HEADS16, **_EXPERTS},
           "<tool_call>", "hermes"),
    Family("Qwen3-Coder", "qwen3_moe", "Qwen/Qwen3-Coder-30B-A3B-Instruct", 30.53, {**_HEADS16, **_EXPERTS},
           "<tool_call><function=<parameter=", "qwen3_coder"),
    Family("Qwen3-Next", "qwen3_next", "Qwen/Qwen3-Next-80B-A3B-Instruct", 79.7, _GATED_EXPERTS, "<tool_call>",
           "hermes"),
    Family("Qwen3.5, its text part", "qwen3_5_text", "Qwen/Qwen3.5-27B", 27.4, {**_HEADS16, **_RECURRENT},
           "<tool_call><function=<parameter=<think>", "qwen3_coder", "think"),
    Family("Qwen3.5 MoE, its text part", "qwen3_5_moe_text", "Qwen/Qwen3.5-35B-A3B", 35.1, _GATED_EXPERTS,
           "<tool_call><function=<parameter=<think>", "qwen3_coder", "think"),
    Family("Llama 3", "llama", "meta-llama/Llama-3.1-8B-Instruct", 8.03, mark="Environment: ipython", tools="llama3"),
    Family("Llama 4, its text part", "llama4_text", "meta-llama/Llama-4-Scout-17B-16E-Instruct", 108.6,
           {**_HEADS16, "num_local_experts": 4, "intermediate_size_mlp": 64, "attention_chunk_size": 8,
            "interleave_moe_layer_step": 1, "no_rope_layers": [1, 0], "floor_scale": 4},
           "Environment: ipython<|python_start|>", "llama3"),
    Family("Gemma 2", "gemma2", "google/gemma-2-9b-it", 9.24, _SLIDING),
    Family("Gemma 3", "gemma3_text", "google/gemma-3-1b-it", 1.0, {**_SLIDING, "sliding_window_pattern": 2}),
    Family("Gemma 4, its text part", "gemma4_text", "google/gemma-4-E2B-it", 5.1, _SLIDING, "<|tool_call><|channel>",
           thinking="gemma4"),
    Family("Mistral 7B", "mistral", "mistralai/Mistral-7B-Instruct-v0.3", 7.25, {"sliding_window": 8}, "[TOOL_CALLS]",
           "mistral"),
    Family("Ministral 3, its text part", "ministral3", "mistralai/Ministral-3-8B-Instruct-2512", 8.8, _HEADS16,
           "[TOOL_CALLS][ARGS]", "mistral_args"),
    Family("DeepSeek V3", "deepseek_v3", "deepseek-ai/DeepSeek-V3", 671.0, {**_LATENT, **_ROUTED},
           "<｜tool▁calls▁begin｜>```json", "deepseek"),
    Family("DeepSeek V3.1", "deepseek_v3", "deepseek-ai/DeepSeek-V3.1", 671.0, {**_LATENT, **_ROUTED},
           "<｜tool▁calls▁begin｜><think>", "deepseek_v31", "think"),
    Family("DeepSeek V3.2", "deepseek_v32", "deepseek-ai/DeepSeek-V3.2", 685.0, {**_LATENT, **_ROUTED, **_INDEXED}),
    Family("gpt-oss", "gpt_oss", "openai/gpt-oss-20b", 20.9, {**_SLIDING, "num_local_experts": 4,
           "num_experts_per_tok": 2}, "<|channel|>", "harmony", "harmony"),
    Family("GLM-4", "glm", "zai-org/glm-4-9b-chat-hf", 9.4, {**_HEADS16, "pad_token_id": 0}, "item['metadata']",
           "glm4"),
    Family("GLM-4-0414", "glm4", "zai-org/GLM-4-9B-0414", 9.4, {**_HEADS16, "pad_token_id": 0}, "<|observation|>",
           "glm4"),
    Family("GLM-4.5, GLM-4.6", "glm4_moe", "zai-org/GLM-4.5-Air", 106.9, {**_HEADS16, **_ROUTED, "n_group": 1,
           "topk_group": 1, "first_k_dense_replace": 1}, "<tool_call><arg_key><think>", "glm45", "think"),
    Family("GLM-4.7-Flash", "glm4_moe_lite", "zai-org/GLM-4.7-Flash", 30.0, {**_HEADS16, **_LATENT, **_ROUTED},
           "<tool_call></arg_key><arg_value><think>", "glm47", "think"),
    Family("GLM-5", "glm_moe_dsa", "zai-org/GLM-5", 744.0, {**_LATENT, **_ROUTED, **_INDEXED, "pad_token_id": 0},
           "<tool_call></arg_key><arg_value><think>", "glm47", "think"),
    Family("Phi-3, Phi-4", "phi3", "microsoft/phi-4", 14.66, {"pad_token_id": 0}),
    Family("OLMo 2", "olmo2", "allenai/OLMo-2-1124-7B-Instruct", 7.3),
    Family("OLMo 3", "olmo3", "allenai/Olmo-3-7B-Instruct", 7.3, {"sliding_window": 8}),
    Family("SmolLM2", "llama", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.71),
    Family("SmolLM3", "smollm3", "HuggingFaceTB/SmolLM3-3B", 3.08, {"pad_token_id": 0}, "<tool_call><think>", "hermes",
           "think"),
    Family("Granite 3", "granite", "ibm-granite/granite-3.3-8b-instruct", 8.17, mark="<think><response>",
           thinking="granite"),
    Family("Granite 4", "granitemoehybrid", "ibm-granite/granite-4.0-h-small", 32.2, {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8,
        "mamba_n_groups": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64,
        "pad_token_id": 0}, "<tool_call>", "hermes"),
    Family("Nemotron-H, Nemotron 3", "nemotron_h", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6, {
        **_ROUTED, "layers_block_type": ["mamba", "attention", "mlp", "moe"], "num_hidden_layers": 4,
        "mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 8, "n_groups": 1, "head_dim": 16,
        "pad_token_id": 0, "n_group": 1, "topk_group": 1, "moe_shared_expert_intermediate_size": 32},
        "<tool_call><function=<parameter=<think>", "qwen3_coder", "think"),
    Family("LFM2", "lfm2", "LiquidAI/LFM2-1.2B", 1.17, {"layer_types": ["conv", "full_attention"],
           "block_auto_adjust_ff_dim": False, "pad_token_id": 0}),
    Family("LFM2 MoE", "lfm2_moe", "LiquidAI/LFM2-8B-A1B", 8.34, {
        **_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "pad_token_id": 0}),
    Family("Falcon-H1", "falcon_h1", "tiiuae/Falcon-H1-7B-Instruct", 7.59, {
        **_HEADS16, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
        "mamba_chunk_size": 16, "pad_token_id": 0}),
    Family("Bamba", "bamba", "ibm-ai-platform/Bamba-9B-v2", 9.78, {
        "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 16, "pad_token_id": 0}),
    Family("Zamba2", "zamba2", "Zyphra/Zamba2-7B-Instruct", 7.36, {
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "num_mem_blocks": 1,
        "mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 32, "mamba_ngroups": 1, "use_mem_rope": True,
        "adapter_rank": 8, "chunk_size": 16, "pad_token_id": 0}),
    Family("Kimi Linear", "kimi_linear", "moonshotai/Kimi-Linear-48B-A3B-Instruct", 49.1, {
        **_LATENT, **_ROUTED, "layer_types": ["linear_attention", "full_attention"], "pad_token_id": 0,
        "linear_attn_config": {"num_heads": 2, "head_dim": 16, "short_conv_kernel_size": 4}}),
    Family("ERNIE 4.5", "ernie4_5", "baidu/ERNIE-4.5-0.3B-PT", 0.36, _HEADS16),
    Family("Hunyuan", "hunyuan_v1_dense", "tencent/Hunyuan-7B-Instruct", 7.5, _HEADS16,
           "<tool_calls><tool_call><think><answer>", thinking="hunyuan"),
    Family("Seed-OSS", "seed_oss", "ByteDance-Seed/Seed-OSS-36B-Instruct", 36.2, _HEADS16,
           "<seed:tool_call><function=<parameter=<seed:think>", "seed_oss", "seed_oss"),
    Family("Apertus", "apertus", "swiss-ai/Apertus-8B-Instruct-2509", 8.05, mark="<|inner_prefix|>",
           thinking="apertus"),
    Family("Command A Reasoning", "cohere2", "CohereLabs/command-a-reasoning-08-2025", 111.1, {"sliding_window": 8},
           "<|START_THINKING|><|START_RESPONSE|>", thinking="cohere"),
    Family("EXAONE 4", "exaone4", "LGAI-EXAONE/EXAONE-4.0-32B", 32.0, {"sliding_window": 8},
           "<tool_call><think>", "hermes", "think"),
    Family("MiniMax M2", "minimax_m2", "MiniMaxAI/MiniMax-M2", 228.7, {**_HEADS16, "num_local_experts": 4,
           "num_experts_per_tok": 2, "rotary_dim": 8}, "<minimax:tool_call><think>", "minimax_m2", "think"),
    Family("Mamba", "mamba", "state-spaces/mamba-2.8b-hf", 2.77, {"state_size": 4, "expand": 2, "conv_kernel": 4},
           refused="without keys and values per token"),
    Family("Jamba", "jamba", "ai21labs/AI21-Jamba-Mini-1.7", 51.6, {
        "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2,
        "mamba_d_state": 8, "mamba_dt_rank": 4}, refused="of a prompt in pieces it forgets what was before each"),
    Family("MiniMax-M1", "minimax", "MiniMaxAI/MiniMax-M1-40k-hf", 456.1, {**_HEADS16, "num_local_experts": 4,
           "num_experts_per_tok": 2, "layer_types": ["linear_attention", "full_attention"]},
           refused="uses cache of its own"),
)  # fmt: skip


@functools.cache
def made(family: Family) -> Any:
    """A random model of the architecture, in float32."""
    torch.manual_seed(0)
    words = tokenizer()
    shape = SHAPE | {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    config = transformers.AutoConfig.for_model(family.architecture, **(shape | family.config))
    config.eos_token_id, config.bos_token_id = words.eos_token_id, words.bos_token_id
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    settle_limits(model)
    return model


def write(family: Family, folder: Path) -> Path:
    made(family).save_pretrained(folder)
    words = tokenizer()
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    return folder
