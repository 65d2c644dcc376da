"""A tiny random Qwen2 in the layouts of quantised checkpoints, written as their own libraries write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from chat.engine_kit import tokenizer
from safetensors.torch import save_file

PROMPT = [5, 9, 30, 41, 77, 12, 6, 200, 4, 8, 21]
BLOCK = 128
"""Weights on a side of what shares a scale in fp8."""


def model(**shape: Any) -> Any:
    """In float32, with widths that the kernels take."""
    torch.manual_seed(21)
    words = tokenizer()
    config = transformers.Qwen2Config(
        vocab_size=len(words), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=512, tie_word_embeddings=False,
        eos_token_id=words.eos_token_id, bos_token_id=None, **shape,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).float().eval()


def write(folder: Path, made: Any = None) -> Path:
    """The model in ``folder``, whole unless ``made`` is another."""
    (made or model()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_bitsandbytes(folder: Path, **how: Any) -> Path:
    config = transformers.BitsAndBytesConfig(**how)
    plain = write(folder / "plain")
    made = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, quantization_config=config)
    return write(folder / "quantised", made)


def write_compressed(folder: Path, scheme: str) -> Path:
    """By compressed-tensors, as llm-compressor does it; ``scheme`` is one of its names, like W4A16."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme

    made = model()
    how = preset_name_to_scheme(scheme, ["Linear"])
    groups = {"group_0": how}
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(made, config)
    largest = 448 if how.weights.type == "float" else 2 ** (how.weights.num_bits - 1) - 1
    for layer in made.modules():
        if getattr(layer, "quantization_scheme", None) is not None:
            rows = layer.weight.reshape(*layer.weight_scale.shape, -1)
            layer.weight_scale.data.copy_(rows.abs().amax(-1) / largest)
    compressor = ModelCompressor.from_pretrained_model(made)
    compressor.compress_model(made)
    write(folder, made)
    compressor.update_config(str(folder))
    return folder


def write_fp8(folder: Path) -> Path:
    """As DeepSeek-V3 and Qwen3's FP8 checkpoints have it: a float32 scale for every square of weights."""
    made = write(folder, model())
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model().state_dict().items():
        if not name.endswith("proj.weight"):
            tensors[name] = tensor.contiguous()
            continue
        rows, columns = (-(-size // BLOCK) for size in tensor.shape)
        scales = torch.zeros(rows, columns)
        small = torch.zeros_like(tensor, dtype=torch.float8_e4m3fn)
        for row in range(rows):
            for column in range(columns):
                square = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
                scales[row, column] = tensor[square].abs().max() / 448
                small[square] = (tensor[square] / scales[row, column]).to(torch.float8_e4m3fn)
        tensors |= {name: small, f"{name}_scale_inv": scales}
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    say(
        made,
        quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    )
    return made


def write_mxfp4(folder: Path) -> Path:
    """A tiny gpt-oss whose experts are random in blocks of 32 numbers of four bits, with a power of two for each."""
    torch.manual_seed(4)
    words = tokenizer()
    config = transformers.AutoConfig.for_model(
        "gpt_oss", vocab_size=len(words), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=8, max_position_embeddings=512, initializer_range=0.2, eos_token_id=words.eos_token_id,
        pad_token_id=0,
    )  # fmt: skip
    made = transformers.AutoModelForCausalLM.from_config(config).float()
    write(folder, made)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in made.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = tensor.shape
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(121, 125, (experts, rows, columns // 32), dtype=torch.uint8)
        else:
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return say(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})


def say(folder: Path, **fields: Any) -> Path:
    """Change the folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def continued(made: Any, count: int) -> list[int]:
    """What transformers' own ``generate`` says greedily after PROMPT."""
    made.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT])
    said = made.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return said[0, len(PROMPT) :].tolist()
