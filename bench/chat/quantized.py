"""What weight-only int8 and int4 would bring the embedded chat model on a CPU: perplexity on real text, and speed.

    python bench/chat/quantized.py

The text is this project's documentation. Speed is that of a linear layer's share of a decode step: all the model's
layers one after the other, in CPU milliseconds, for 1, 8 and 32 rows.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from quintet_chat.backends import embedded
from quintet_common.packing import PackedLinear
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
GROUP = 32
WINDOW, WINDOWS = 512, 12


class Int8(nn.Module):
    """Symmetric, a scale for each output channel."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1) / 127
        self._weight = (weight / scale[:, None]).round().to(torch.int8)
        self._scale = scale.bfloat16()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, -2)
        return torch._weight_int8pack_mm(flat, self._weight, self._scale).unflatten(0, hidden.shape[:-1])


class Int4(nn.Module):
    """Asymmetric, a scale and a zero for each 32 inputs of an output channel."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float().unflatten(1, (-1, GROUP))
        low, high = weight.amin(-1), weight.amax(-1)
        scale = (high - low).clamp(min=1e-6) / 15
        rounded = ((weight - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32)
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(rounded.flatten(1), 1)
        self._scales = torch.stack([scale, low + 8 * scale], -1).bfloat16().transpose(0, 1).contiguous()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, -2)
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self._weight, GROUP, self._scales)
        return out.unflatten(0, hidden.shape[:-1])


def replaced(model: Any, make: Callable[[nn.Linear], nn.Module]) -> Any:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, make(child))
    return model


@torch.inference_mode()
def perplexity(model: Any, ids: torch.Tensor) -> float:
    windows = ids[: WINDOW * WINDOWS].unflatten(0, (-1, WINDOW))
    losses = []
    for window in windows.split(4):
        logits = model(window).logits[:, :-1].float()
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none"))
    return float(torch.cat(losses).mean().exp())


@torch.inference_mode()
def milliseconds(model: Any, rows: int) -> float:
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, PackedLinear, Int8, Int4))]
    widths = (model.config.hidden_size, model.config.intermediate_size)
    inputs = {wide: torch.randn(rows, wide).bfloat16() for wide in widths}
    sizes = [getattr(layer, "in_features", None) or layer.wide for layer in layers]
    times = []
    for _ in range(20):
        start = time.process_time()
        for layer, size in zip(layers, sizes, strict=True):
            layer(inputs[size])
        times.append(time.process_time() - start)
    return sorted(times)[5] * 1000


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    path = embedded.directory(embedded.SMOLLM2, lambda _fraction, _note: None)
    plain = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    text = "\n\n".join(file.read_text() for file in sorted((ROOT / "docs").glob("*.md")))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    print("| weights | perplexity | 1 row | 8 rows | 32 rows |\n|---|---|---|---|---|")
    for name, make in {"bf16": None, "bf16, packed": PackedLinear, "int8": Int8, "int4": Int4}.items():
        model = copy.deepcopy(plain)
        if make is not None:
            widths = {child: child.in_features for child in model.modules() if type(child) is nn.Linear}

            def sized(linear: nn.Linear, make: Any = make, widths: Any = widths) -> nn.Module:
                module: nn.Module = make(linear)
                module.wide = widths[linear]  # type: ignore[assignment]
                return module

            model = replaced(model, sized)
        speeds = " | ".join(f"{milliseconds(model, rows):.1f} ms" for rows in (1, 8, 32))
        print(f"| {name} | {perplexity(model, ids):.3f} | {speeds} |", flush=True)


if __name__ == "__main__":
    main()
