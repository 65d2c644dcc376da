"""A tiny random Qwen2, its linear layers quantised to four bits as GPTQ or AWQ writes them, and the same in float32.

Eight numbers share an int32, the lowest bits first: of ``qweight`` [in / 8, out] down the rows, of ``qzeros``
[groups, out / 8] along them. A weight is (number - zero) x scale of its group, and GPTQ stores a zero less one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from chat.engine_kit import tokenizer
from safetensors.torch import save_file

GROUP = 32
_SHIFTS = torch.arange(0, 32, 4)


def write(folder: Path, experts: bool = False, method: str = "gptq") -> Any:
    """The quantised model in ``folder``; what it means comes back. ``method`` is gptq or awq."""
    torch.manual_seed(21)
    words = tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 1024,
        "tie_word_embeddings": False, "eos_token_id": words.eos_token_id, "bos_token_id": None,
    }  # fmt: skip
    if experts:
        shape |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
        shape |= {"shared_expert_intermediate_size": 128}
    config = transformers.AutoConfig.for_model("qwen2_moe" if experts else "qwen2", **shape)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in _single(model.state_dict()).items():
        stored |= LAYOUTS[method](name, tensor) if _is_quantised(name, tensor) else {name: tensor.contiguous()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    written = config.to_dict() | {"architectures": [type(model).__name__], "torch_dtype": "float32"}
    written["quantization_config"] = SETTINGS[method] | {"quant_method": method, "bits": 4, "group_size": GROUP}
    (folder / "config.json").write_text(json.dumps(written))
    words.save_pretrained(folder)
    return model


def _is_quantised(name: str, tensor: torch.Tensor) -> bool:
    return name.endswith("proj.weight") and tensor.dim() == 2


def _single(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every expert's tensors by themselves, as checkpoints have them."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() != 3:
            found[name] = tensor
            continue
        for index, each in enumerate(tensor):
            before = name.rpartition("experts.")[0] + f"experts.{index}"
            if name.endswith("gate_up_proj"):
                gate, up = each.chunk(2)
                found |= {f"{before}.gate_proj.weight": gate, f"{before}.up_proj.weight": up}
            else:
                found[f"{before}.down_proj.weight"] = each
    return found


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers from 0 to 15 [in, out] and scales [groups, out]; ``weight`` [out, in] becomes what they mean."""
    rows = weight.T
    groups = rows.reshape(-1, GROUP, rows.shape[1])
    scales = (groups.abs().amax(1) / 7).half().float()
    numbers = (groups / scales[:, None]).round().clamp(-8, 7).int() + 8
    rows.copy_(((numbers - 8) * scales[:, None]).reshape(rows.shape))
    return numbers.reshape(rows.shape), scales


def _gptq(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    numbers, scales = _rounded(weight)
    stem = name.removesuffix("weight")
    return {
        f"{stem}qweight": (numbers.reshape(-1, 8, numbers.shape[1]) << _SHIFTS[None, :, None]).sum(1).int(),
        f"{stem}qzeros": torch.full((len(scales), numbers.shape[1] // 8), 0x77777777, dtype=torch.int32),
        f"{stem}scales": scales.half(),
        f"{stem}g_idx": (torch.arange(numbers.shape[0]) // GROUP).int(),
    }


def _awq(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eight outputs share an int32, in the order 0, 2, 4, 6, 1, 3, 5, 7; zeros are stored as they are."""
    numbers, scales = _rounded(weight)
    stem = name.removesuffix("weight")
    ordered = numbers.reshape(numbers.shape[0], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
    return {
        f"{stem}qweight": (ordered << _SHIFTS).sum(-1).int(),
        f"{stem}qzeros": torch.full((len(scales), numbers.shape[1] // 8), -0x77777778, dtype=torch.int32),
        f"{stem}scales": scales.half(),
    }


LAYOUTS = {"gptq": _gptq, "awq": _awq}
SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {
        "desc_act": False, "sym": True, "damp_percent": 0.01, "static_groups": False, "true_sequential": True,
    },
    "awq": {"version": "gemm", "zero_point": True, "modules_to_not_convert": None},
}  # fmt: skip
