"""Random pipelines that edit as the prompt says, of a few hundred kilobytes, beside the families that draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from quintet_vision.backends.qwen_pictures import PictureProcessor
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from . import tiny_families

_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]
"""From number 9 on, as tiny Qwen-Image's text encoder has them."""


def _kontext() -> Any:
    return FluxKontextPipeline(**tiny_families.flux().components)


def _processor() -> Any:
    words = [*(f"<{number}>" for number in range(9)), *_MARKS, "a", "cat", "dog", "red", "blue", "<unk>", "<pad>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=_MARKS
    )
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84)
    return PictureProcessor(images, wrapped)


def _qwen(kind: Any) -> Any:
    processor = _processor()
    parts = {**tiny_families.qwen_image().components, "tokenizer": processor.tokenizer, "processor": processor}
    return kind(**parts)


def _klein() -> Any:
    """Its text encoder is read at layers 9, 18 and 27."""
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=64
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=tiny_families.word_tokenizer(chat=True),
        transformer=transformer,
    )


def save_editor(family: str, folder: Path) -> None:
    """Write a random editor of ``family`` as a diffusers folder, laid out as the published ones are."""
    tiny_families.save(EDITORS[family], folder)
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    if "processor" in parts:
        parts["processor"] = ["transformers", "Qwen2VLProcessor"]
        index.write_text(json.dumps(parts))


EDITORS = {
    "flux-kontext": _kontext,
    "qwen-image-edit": lambda: _qwen(QwenImageEditPipeline),
    "qwen-image-edit-plus": lambda: _qwen(QwenImageEditPlusPipeline),
    "flux2-klein": _klein,
}
