"""Tiny random checkpoints for vLLM, whose kernels want heads of 32 numbers, and the server that runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from chat.engine_kit import tokenizer
from chat.serving import serving
from quintet_chat.app import create_app
from quintet_common import vllm_program
from quintet_common.models_yml import ModelSpec

needs_vllm = pytest.mark.skipif(
    vllm_program.PYTHON not in os.environ, reason=f"needs vLLM: {vllm_program.PYTHON} names no interpreter that has it"
)
TORCHVISION = "QUINTET_TORCHVISION"
"""Environment variable with a folder that holds torchvision, for an environment of vLLM's that has none."""

READY_SECONDS = 420
SETTINGS: dict[str, Any] = {
    "enforce_eager": True,
    "env": {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    },
}
"""``engine_args`` of a small server on a CPU."""

THINKING_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{{ tools | tojson }}</tools> <tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined %}<think>\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)
"""Calls in the manner of hermes; the thinking is opened, or opened and closed, when the request says so."""


def _has_torchvision() -> bool:
    if TORCHVISION in os.environ or vllm_program.PYTHON not in os.environ:
        return True
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torchvision') is None)"
    return subprocess.run([os.environ[vllm_program.PYTHON], "-c", code], check=False).returncode == 0


has_torchvision = pytest.mark.skipif(
    not _has_torchvision(), reason=f"vLLM's environment has no torchvision, and {TORCHVISION} names none"
)


def spec_of(path: Path, *, sees: bool = False, **fields: Any) -> ModelSpec:
    """``sees``: the model needs torchvision."""
    arguments = SETTINGS | fields.pop("engine_args", {})
    if sees and TORCHVISION in os.environ:
        folders = [str(Path(__file__).with_name("torchvision_on_cpu")), os.environ[TORCHVISION]]
        arguments["env"] = arguments["env"] | {"PYTHONPATH": os.pathsep.join(folders)}
    common: dict[str, Any] = {"id": "tiny", "kind": "chat", "dtype": "float32", "max_batch": 8}
    return ModelSpec(**(common | {"path": str(path), "engine_args": arguments} | fields))


@contextmanager
def served(*specs: ModelSpec) -> Iterator[str]:
    kind = "multimodal" if specs[0].kind == "multimodal" else "chat"
    with serving(create_app(kind, list(specs), "quintet_chat.worker:create_engine"), READY_SECONDS) as url:
        yield url


def write_qwen2(folder: Path) -> Any:
    """A random Qwen2 with its tokenizer in ``folder``; the model itself comes back."""
    torch.manual_seed(5)
    made = tokenizer()
    made.chat_template = THINKING_TEMPLATE
    config = transformers.Qwen2Config(
        vocab_size=len(made), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, max_position_embeddings=1024, eos_token_id=made.eos_token_id,
        bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).float().eval()
    model.generation_config = transformers.GenerationConfig(eos_token_id=made.eos_token_id, pad_token_id=0)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return model
