"""A random Kolors of a few hundred kilobytes, with every part that the real one has, as a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

_SENTENCES = ("a photo of a cat and a dog", "一张可爱的猫的照片", "a red circle on blue", "北京的夜晚 霓虹灯 白色背景")
_HIDDEN, _TIMES = 32, 8


def save_tiny_kolors(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = _tokenizer(folder.with_suffix(".tokenizer"))
    pipe = KolorsPipeline(
        vae=_autoencoder(),
        text_encoder=_text_encoder(tokenizer.vocab_size),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.014,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
    )
    pipe.save_pretrained(folder)


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


def _text_encoder(vocabulary: int) -> Any:
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=vocabulary + 64,
        hidden_size=_HIDDEN,
        ffn_hidden_size=37,
        kv_channels=4,
        num_attention_heads=8,
        seq_length=512,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        layernorm_epsilon=1e-5,
        rmsnorm=True,
        post_layer_norm=True,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=1,
        original_rope=True,
    )
    model = ChatGLMModel(config, empty_init=False)
    for name, parameter in model.named_parameters():  # its layers are made without being filled
        if "norm" in name and parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, 0, 0.05)
    return model.eval()


def _unet() -> Any:
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIMES,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=_HIDDEN + 6 * _TIMES,
        cross_attention_dim=48,
        encoder_hid_dim=_HIDDEN,
        encoder_hid_dim_type="text_proj",
        norm_num_groups=8,
    )


def _autoencoder() -> Any:
    return AutoencoderKL(
        block_out_channels=[8, 8, 16, 16],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
    )
