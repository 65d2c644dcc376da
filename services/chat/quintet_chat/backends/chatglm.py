"""GLM-4 chat models, and glm-4v-9b, in the layout in which they were first published (``model_type: chatglm``).

The files name their tensors as the code that once came with them did. That code is not run: configuration and tensors
are renamed to those of transformers' Glm as they are read, which takes no copy of the weights, and the tokenizer is
built from its file of tokens. Format: vLLM's and transformers' models of the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from quintet_common.worker.host import LoadError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GlmConfig, GlmForCausalLM

from quintet_chat.backends.chatglm_tokenizer import load_tokenizer
from quintet_chat.backends.glm4v import Eyes, SeeingGlm
from quintet_chat.backends.glm4v_pictures import Glm4vProcessor

_RENAMED = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.layers": "model.layers",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
_TOWER = "transformer.vision."
_AS_IN_GLM = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "multi_query_attention": True,
    "original_rope": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
}
"""What these models' configurations may say otherwise, and Glm cannot do."""

FILES = ["*.json", "*.safetensors", "tokenizer.model"]
"""What of a repository is needed."""


class ChatGlm:
    """The model in ``folder``. Every method raises LoadError with a line for a person."""

    def __init__(self, model_id: str, folder: Path, published: dict[str, Any]) -> None:
        self._id = model_id
        self._folder = folder
        self._published = published

    def config(self) -> GlmConfig:
        published = self._published
        seeing: dict[str, Any] = {}
        if self._eyes() is not None:
            seeing = {"vision_config": published["vision_config"], "image_token_id": published.get("boi_token_id")}
        for name, wanted in _AS_IN_GLM.items():
            if published.get(name, wanted) is not wanted:
                raise LoadError(f"{self._id}: {name}: {published[name]} in its config.json is not supported.")
        try:
            return GlmConfig(
                vocab_size=published["padded_vocab_size"],
                hidden_size=published["hidden_size"],
                intermediate_size=published["ffn_hidden_size"],
                num_hidden_layers=published["num_layers"],
                num_attention_heads=published["num_attention_heads"],
                num_key_value_heads=published["multi_query_group_num"],
                head_dim=published["kv_channels"],
                rms_norm_eps=published["layernorm_epsilon"],
                attention_bias=published["add_qkv_bias"],
                max_position_embeddings=published["seq_length"],
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 10_000.0 * published.get("rope_ratio", 1),
                    "partial_rotary_factor": 0.5,
                },
                eos_token_id=published.get("eos_token_id"),
                pad_token_id=published.get("pad_token_id"),
                tie_word_embeddings=published.get("tie_word_embeddings", False),
                dtype=published.get("torch_dtype"),
                **seeing,
            )
        except KeyError as missing:
            raise LoadError(f"{self._id}: its config.json lacks {missing}.") from None

    def tokenizer(self) -> Any:
        return load_tokenizer(self._id, self._folder)

    def processor(self, tokenizer: Any) -> Glm4vProcessor | None:
        """For the pictures of a model that sees; None for others."""
        eyes = self._eyes()
        return None if eyes is None else Glm4vProcessor(tokenizer, eyes)

    def model(self, config: GlmConfig, **arguments: Any) -> Any:
        """What ``from_pretrained`` returns for ``arguments``. The weights stay on disk until they are asked for."""
        weights = {new: part for name, tensor in self._tensors() for new, part in _renamed(name, tensor, config)}
        kind = GlmForCausalLM if self._eyes() is None else SeeingGlm
        return kind.from_pretrained(None, config=config, state_dict=weights, **arguments)

    def _eyes(self) -> Eyes | None:
        if "vision_config" not in self._published:
            return None
        try:
            return Eyes.of(self._published["vision_config"])
        except ValueError as error:
            raise LoadError(f"{self._id}: {error}.") from None

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        files = sorted(self._folder.glob("*.safetensors"))
        if not files:
            raise LoadError(f"{self._id}: there are no *.safetensors in {self._folder}; pickled weights are not read.")
        for file in files:
            try:
                yield from load_file(file).items()
            except (OSError, SafetensorError) as error:
                raise LoadError(f"{self._id}: {file.name} cannot be read: {error}") from None


def _renamed(name: str, tensor: torch.Tensor, config: GlmConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor under its name in Glm, where queries, keys and values, one tensor here, are three."""
    if name.endswith("rotary_pos_emb.inv_freq"):  # follows from the configuration
        return
    if name.startswith(_TOWER):
        yield name.replace(_TOWER, "vision.", 1), tensor
        return
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    if "query_key_value" not in name:
        yield name, tensor
        return
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    for letter, part in zip("qkv", torch.split(tensor, [queries, keys, keys]), strict=True):
        yield name.replace("self_attention.query_key_value", f"self_attn.{letter}_proj"), part


def find(model_id: str, folder: Path) -> ChatGlm | None:
    """The model in ``folder``, if it is laid out as one of these."""
    try:
        published = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None  # the ordinary way of loading says what is wrong
    if not isinstance(published, dict) or published.get("model_type") != "chatglm":
        return None
    return ChatGlm(model_id, folder, published)
