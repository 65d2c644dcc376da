"""A random Kolors of a few hundred kilobytes, with every part that the real one has, as a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

Sizes = Mapping[str, Any]
"""Arguments of a part's configuration that replace those of the tiny one."""

_SENTENCES = ("a photo of a cat and a dog", "一张可爱的猫的照片", "a red circle on blue", "北京的夜晚 霓虹灯 白色背景")
_HIDDEN, _TIMES = 32, 8


def save_tiny_kolors(folder: Path) -> None:
    kolors(folder.with_suffix(".tokenizer")).save_pretrained(folder)


def kolors(prefix: Path, unet: Sizes = {}, text: Sizes = {}, vae: Sizes = {}) -> Any:  # noqa: B006
    """A pipeline with random weights on torch's default device, in its default type. Its tokenizer is written beside
    ``prefix``."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(prefix)
    return KolorsPipeline(
        vae=_autoencoder(vae),
        text_encoder=_text_encoder({"padded_vocab_size": tokenizer.vocab_size + 64, **text}),
        tokenizer=tokenizer,
        unet=_unet(unet),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.014,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
    )


def save_lora(folder: Path, file: Path, seed: int) -> None:
    """A random LoRA, strong enough to be seen, for the tiny Kolors in ``folder``."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 2.0)
    save_file({f"unet.{name}": weight for name, weight in get_peft_model_state_dict(unet).items()}, file)


def _tokenizer(prefix: Path) -> Any:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 20),
        model_prefix=str(prefix),
        vocab_size=400,
        character_coverage=1.0,
        byte_fallback=True,
        model_type="bpe",
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return ChatGLMTokenizer(f"{prefix}.model")


def _text_encoder(sizes: Sizes) -> Any:
    tiny = {
        "num_layers": 2,
        "hidden_size": _HIDDEN,
        "ffn_hidden_size": 37,
        "kv_channels": 4,
        "num_attention_heads": 8,
        "seq_length": 512,
        "multi_query_group_num": 1,
    }
    config = ChatGLMConfig(
        hidden_dropout=0.0,
        attention_dropout=0.0,
        layernorm_epsilon=1e-5,
        rmsnorm=True,
        post_layer_norm=True,
        add_qkv_bias=True,
        multi_query_attention=True,
        original_rope=True,
        **{**tiny, **sizes},
    )
    model = ChatGLMModel(config, empty_init=False)
    for name, parameter in model.named_parameters():  # its layers are made without being filled
        if "norm" in name and parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, 0, 0.05 if config.hidden_size == _HIDDEN else 0.02)
    return model.eval()


def _unet(sizes: Sizes) -> Any:
    tiny = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "addition_time_embed_dim": _TIMES,
        "transformer_layers_per_block": (1, 1),
        "projection_class_embeddings_input_dim": _HIDDEN + 6 * _TIMES,
        "cross_attention_dim": 48,
        "encoder_hid_dim": _HIDDEN,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(
        use_linear_projection=True,
        addition_embed_type="text_time",
        encoder_hid_dim_type="text_proj",
        **{**tiny, **sizes},
    )


def _autoencoder(sizes: Sizes) -> Any:
    tiny = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "sample_size": 128}
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        **{**tiny, **sizes},
    )
