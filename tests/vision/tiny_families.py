"""Random pipelines of a few hundred kilobytes, one for each family beside Kolors, with every part the real ones have.

Sizes are cut, nothing else: the code that draws with them is that of the real models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

_WORDS = ["<pad>", "<unk>", "<eos>", "a", "cat", "dog", "red", "photo", "of", "user", "assistant", "the", "blue"]


def save_tiny(family: str, folder: Path) -> None:
    """Write a random model of ``family`` as a diffusers folder."""
    save(_MAKERS[family], folder)


def save(make: Callable[[], Any], folder: Path) -> None:
    """Write the random pipeline that ``make`` makes as a diffusers folder."""
    torch.manual_seed(0)
    pipe = make()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            _spread(part)
    pipe.save_pretrained(folder)


def _spread(module: Any) -> None:
    """Layers that start at zero would let no prompt through."""
    for parameter in module.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.05)


def _clip(projected: bool) -> Any:
    config = CLIPTextConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=510,
        eos_token_id=511,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _clip_tokenizer() -> Any:
    letters = [chr(code) for code in range(33, 127)] + [chr(code) for code in range(161, 256)]
    vocabulary = {text: index for index, text in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    while len(vocabulary) < 510:
        vocabulary[f"<{len(vocabulary)}>"] = len(vocabulary)
    vocabulary |= {"<|startoftext|>": 510, "<|endoftext|>": 511}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def word_tokenizer(chat: bool = False) -> Any:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", model_max_length=512
    )
    if chat:
        wrapped.chat_template = "{% for m in messages %}user {{ m['content'] }} {% endfor %}assistant"
    return wrapped


def _t5() -> Any:
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def _autoencoder(channels: int, shift: float | None = None) -> Any:
    return AutoencoderKL(
        block_out_channels=[8, 8, 16, 16],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.36,
        shift_factor=shift,
    )


def _sdxl() -> Any:
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=16 + 6 * 8,
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(4),
        text_encoder=_clip(False),
        text_encoder_2=_clip(True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"),
    )


def _sd3() -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=16,
    )
    # T5's 16 features are padded to CLIP's two times 16.
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(16, 0.11),
        text_encoder=_clip(True),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(True),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=T5EncoderModel(T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        tokenizer_3=word_tokenizer(),
    )


def flux() -> Any:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(4, 0.11),
        text_encoder=_clip(False),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=word_tokenizer(),
    )


def qwen_image() -> Any:
    channels = 4
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * channels,
        out_channels=channels,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=16,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels,
        latents_std=[1.5] * channels,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1e6,
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        vision_start_token_id=9,
        vision_end_token_id=10,
        image_token_id=11,
        video_token_id=12,
    )
    return QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=word_tokenizer(),
    )


def _z_image() -> Any:
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(16, 0.11),
        text_encoder=Qwen3Model(config),
        tokenizer=word_tokenizer(chat=True),
    )


_MAKERS = {"sdxl": _sdxl, "sd3": _sd3, "flux": flux, "qwen-image": qwen_image, "z-image": _z_image}
FAMILIES = tuple(_MAKERS)
