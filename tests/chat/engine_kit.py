"""What tests of the engine share: tiny random models with a tokenizer of their own, and a way to ask an engine."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
import transformers
from quintet_chat.backends.time_steps import settle_limits
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.protocol import Delta, Finished, Generate, Sampling
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DEVICE = os.environ.get("QUINTET_TEST_DEVICE", "cpu")
"""What models are loaded to: ``cuda:0`` where there is a GPU, or one is pretended (tests/pretend_gpu)."""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'villain' %}{{ raise_exception('no villains') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = 'hello world the cat sat on the mat {"name": "cat", "age": 12} 猫 é'


def tokenizer() -> Any:
    """Byte-level BPE over a few words, so that Chinese characters are several tokens each."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    made.train_from_iterator(["hello world the cat sat on the mat"] * 20, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    return fast


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
RECURRENT = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3": {"head_dim": 16},
    "glm": {"head_dim": 16, "pad_token_id": 0},
    "glm4": {"head_dim": 16, "pad_token_id": 0},
    "mistral": {"sliding_window": 8},
    "qwen2-half-sliding": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma2": {"sliding_window": 8, "head_dim": 16},
    "gemma3_text": {"sliding_window": 8, "head_dim": 16, "sliding_window_pattern": 2},
    "llama4_text": {
        "head_dim": 16, "num_local_experts": 4, "intermediate_size_mlp": 64, "no_rope_layers": [1, 0],
        "attention_chunk_size": 8, "floor_scale": 4, "attn_scale": 2.0, "pad_token_id": 0,
    },
    "qwen3_next": {**RECURRENT, **EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": RECURRENT,
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8,
        "mamba_n_groups": 1, "num_local_experts": 0, "shared_intermediate_size": 64, "pad_token_id": 0,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"], "num_hidden_layers": 4, "mamba_num_heads": 4,
        "mamba_head_dim": 32, "ssm_state_size": 8, "n_groups": 1, "head_dim": 16, "pad_token_id": 0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False, "pad_token_id": 0},
    "falcon_h1": {
        "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 16, "head_dim": 16, "pad_token_id": 0,
    },
    # Few heads of the indexer would find many keys equally good, of which transformers takes any.
    "deepseek_v32": {
        "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
        "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
        "index_topk": 8, "index_n_heads": 16, "index_head_dim": 16,
    },
}  # fmt: skip
"""Tiny models of the families that are served most, and every way of mixing kinds of layers."""
STATEFUL = ("qwen3_next", "qwen3_5_text", "granitemoehybrid", "nemotron_h", "lfm2", "falcon_h1")
"""Those of which nothing is kept but the state behind the last token."""


@functools.cache
def tiny_path(kind: str = "llama") -> Path:
    """A directory with a random model of ``kind``, a name of KINDS."""
    torch.manual_seed(0)
    made = tokenizer()
    config = transformers.AutoConfig.for_model(kind.split("-")[0], vocab_size=len(made), **(SHAPE | KINDS[kind]))
    config.eos_token_id = made.eos_token_id
    folder = Path(tempfile.mkdtemp(prefix="quintet-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@functools.cache
def reference(kind: str) -> Any:
    """The same model under transformers' own ``generate``."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_path(kind), dtype=torch.float32).eval()
    settle_limits(model)
    return model


def tiny_spec(kind: str = "llama", **fields: Any) -> ModelSpec:
    return ModelSpec(id="tiny", kind="chat", path=str(tiny_path(kind)), dtype="float32", device=DEVICE, **fields)


def started(spec: ModelSpec) -> ChatEngine:
    """A loaded engine; its threads end with the tests."""
    engine = ChatEngine(spec)
    engine.info = engine.load(lambda _fraction, _note: None)  # type: ignore[attr-defined]
    atexit.register(engine.close)
    return engine


@functools.cache
def tiny_engine() -> ChatEngine:
    """One running engine over the tiny Llama for every test that needs nothing special."""
    return started(tiny_spec())


class Heard:
    """Takes the place of host.Emit: keeps the events of one request."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.endings = 0
        self.error: ApiError | None = None
        self._ended = threading.Event()

    def __call__(self, event: Any) -> None:
        assert not self.endings, "an event after the end"
        self.events.append(event)

    def done(self) -> None:
        self.endings += 1
        self._ended.set()

    def fail(self, error: ApiError) -> None:
        self.error = error
        self.done()

    def wait(self) -> Heard:
        assert self._ended.wait(60), "the request did not end"
        assert self.endings == 1
        return self

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    def deltas(self, index: int = 0) -> list[Delta]:
        return [event for event in self.events if isinstance(event, Delta) and event.index == index]

    def text(self, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas(index))

    def tokens(self, index: int = 0) -> int:
        return sum(delta.tokens for delta in self.deltas(index))

    @property
    def reasons(self) -> dict[int, str]:
        return {event.index: event.reason for event in self.events if isinstance(event, Finished)}


_ids = itertools.count(1)


def submit(engine: ChatEngine, prompt: str | list[int] | None = None, **fields: Any) -> tuple[int, Heard]:
    """Send a request; fields of Sampling and of Generate may be mixed. A prompt is a completion, else give messages."""
    sampling = {name: fields.pop(name) for name in list(fields) if name in Sampling.__struct_fields__}
    request_id, heard = next(_ids), Heard()
    body = Generate(prompt=prompt, sampling=Sampling(**sampling), **fields)
    engine.submit(request_id, body, heard)  # type: ignore[arg-type]
    return request_id, heard


def ask(engine: ChatEngine, prompt: str | list[int] | None = None, **fields: Any) -> Heard:
    """Send a request and wait for its end; its error is raised."""
    heard = submit(engine, prompt, **fields)[1].wait()
    if heard.error is not None:
        raise heard.error
    return heard


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
