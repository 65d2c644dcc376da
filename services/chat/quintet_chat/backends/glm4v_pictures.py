"""The pictures of glm-4v-9b on their way into a prompt: one a conversation, as large as the tower wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from quintet_common.errors import bad_request

from quintet_chat.backends.glm4v import Eyes, SeeingGlm
from quintet_chat.engine.pictures import PictureReader, Pictures, Prepared

_BEGIN, _PLACE, _END = "<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>"
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
"""Of CLIP's pictures: red, green and blue from 0 to 1."""


class Glm4vProcessor:
    """Makes pictures into pixels, and their marks in texts into places, in the manner of transformers' processors."""

    image_token = _BEGIN + _PLACE + _END

    def __init__(self, tokenizer: Any, eyes: Eyes) -> None:
        self.tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template
        self._size = eyes.image_size
        self._written = _BEGIN + _PLACE * eyes.places + _END

    def __call__(
        self,
        images: list[Image.Image],
        text: list[str],
        *,
        return_text_replacement_offsets: bool = False,
        return_tensors: str = "pt",  # noqa: ARG002  what transformers' processors are told
    ) -> dict[str, Any]:
        """The model's input for a text with a picture; with offsets also what is written for the picture."""
        written = text[0].replace(self.image_token, self._written)
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([self.tokenizer(written)["input_ids"]]),
            "pixel_values": torch.stack([self._pixels(image) for image in images]),
        }
        if return_text_replacement_offsets:
            inputs["text_replacement_offsets"] = [[{"replacement": self._written}]]
        return inputs

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """[3, size, size]; what is not square is stretched."""
        resized = np.array(image.resize((self._size, self._size), Image.Resampling.BICUBIC))
        return ((torch.from_numpy(resized) / 255 - _MEAN) / _STD).permute(2, 0, 1)


class Glm4vReader(PictureReader):
    """The model stands for ``image_token_id`` alone; what is seen takes the places behind it, too."""

    def __init__(self, processor: Glm4vProcessor, model: SeeingGlm) -> None:
        super().__init__(processor, model)
        self._model = model

    def read(self, text: str, encoded: list[bytes], tokenize: Callable[[str], list[int]]) -> tuple[list[int], Pictures]:
        """Refuses a second picture, which the model was not made for, with 400."""
        if len(encoded) > 1:
            message = f"This model takes one picture a conversation; the messages have {len(encoded)}."
            raise bad_request(message, "messages", "too_many_pictures")
        return super().read(text, encoded, tokenize)

    def _find(self, ids: torch.Tensor, prepared: list[Prepared]) -> list[torch.Tensor]:
        (begin,) = super()._find(ids, prepared)
        return [begin + torch.arange(self._model.places + 2)]

    def _layout(self, ids: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, int]:
        positions = self._model.numbers(ids)
        return positions, int(positions[-1]) + 1 - len(ids)
