"""What reads pictures for Qwen's editing pipelines, without the part for films, which needs torchvision."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

_FOLDER = "processor"


class PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        ProcessorMixin.__init__(self, image_processor, tokenizer)  # the class between would make the other part


def processor_for(path: str) -> dict[str, Any]:
    """The argument of ``from_pretrained`` that keeps a pipeline, by its folder or hub id, from loading its own."""
    from diffusers import DiffusionPipeline

    try:
        parts = DiffusionPipeline.load_config(path)
    except (OSError, ValueError):  # said better by the loading that follows
        return {}
    if parts.get(_FOLDER, [None, None])[1] != "Qwen2VLProcessor":
        return {}
    pictures = Qwen2VLImageProcessorPil.from_pretrained(path, subfolder=_FOLDER)
    return {_FOLDER: PictureProcessor(pictures, AutoTokenizer.from_pretrained(path, subfolder=_FOLDER))}
