"""Pictures for MiniCPM-V-2_6: an overview of about 448 x 448 pixels, and as many slices of that size as it is worth."""

from __future__ import annotations

import math
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

Size = tuple[int, int]
"""Width and height in pixels, or columns and rows."""


class Settings(TypedDict, total=False):
    """What may be set for a model, beside its preprocessor_config.json."""

    max_slice_nums: int
    scale_resolution: int
    patch_size: int
    image_feature_size: int
    use_image_id: bool


class MiniCPMVImageProcessor(ImageProcessingMixin):  # type: ignore[misc]
    """What vLLM's model calls; names and arguments are those it uses."""

    model_input_names = ("pixel_values",)
    valid_kwargs = Settings
    im_id_start = "<image_id>"
    im_id_end = "</image_id>"

    def __init__(
        self,
        max_slice_nums: int = 9,
        scale_resolution: int = 448,
        patch_size: int = 14,
        image_feature_size: int = 64,
        use_image_id: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_slice_nums = max_slice_nums
        self.scale_resolution = scale_resolution
        self.patch_size = patch_size
        self.image_feature_size = image_feature_size
        self.use_image_id = use_image_id

    def __call__(self, images: Any, *, max_slice_nums: int | None = None, **_: Any) -> BatchFeature:
        """``images`` is a picture, several of one prompt, or a list of such lists.

        For each prompt: ``pixel_values``, tensors [3, patch, patch x patches] of every picture's parts in turn;
        ``tgt_sizes`` [parts, 2], rows and columns of their patches; ``image_sizes``, of the pictures as they came.
        """
        prompts = images if isinstance(images, list) else [images]
        prompts = prompts if prompts and isinstance(prompts[0], list) else [prompts]
        pixels, sizes, grids = [], [], []
        for prompt in prompts:
            pictures = [_as_picture(image) for image in prompt]
            parts = [part for picture in pictures for part in self._parts(picture, max_slice_nums)]
            pixels.append([self._patches(part) for part in parts])
            sizes.append([picture.size for picture in pictures])
            shapes = [(part.height // self.patch_size, part.width // self.patch_size) for part in parts]
            grids.append(torch.tensor(shapes, dtype=torch.int32).reshape(-1, 2))
        return BatchFeature({"pixel_values": pixels, "image_sizes": sizes, "tgt_sizes": grids})

    def get_sliced_grid(self, image_size: Size, max_slice_nums: int | None = None) -> Size | None:
        """Columns and rows of slices; None where the overview is all there is."""
        width, height = image_size
        most = max_slice_nums or self.max_slice_nums
        ideal = min(math.ceil(width * height / self.scale_resolution**2), most)
        if ideal <= 1:
            return None
        counts = [count for count in (ideal - 1, ideal, ideal + 1) if 1 < count <= most]
        grids = [
            (columns, count // columns) for count in counts for columns in range(1, count + 1) if not count % columns
        ]
        return min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))

    def get_slice_image_placeholder(
        self,
        image_size: Size,
        image_idx: int = 0,
        max_slice_nums: int | None = None,
        use_image_id: bool | None = None,
    ) -> str:
        """What stands for a picture in the prompt: a place for each of its vectors, between marks."""
        places = "<unk>" * self.image_feature_size
        numbered = self.use_image_id if use_image_id is None else use_image_id
        text = f"{self.im_id_start}{image_idx}{self.im_id_end}" if numbered else ""
        text += f"<image>{places}</image>"
        grid = self.get_sliced_grid(image_size, max_slice_nums)
        if grid is not None:
            columns, rows = grid
            text += "\n".join([f"<slice>{places}</slice>" * columns] * rows)
        return text

    def _parts(self, picture: Image.Image, max_slice_nums: int | None) -> list[Image.Image]:
        """The overview and the slices, row by row."""
        grid = self.get_sliced_grid(picture.size, max_slice_nums)
        overview = picture.resize(self._near(picture.width, picture.height), Image.Resampling.BICUBIC)
        if grid is None:
            return [overview]
        columns, rows = grid
        width, height = self._near(_multiple(picture.width, columns) / columns, _multiple(picture.height, rows) / rows)
        whole = picture.resize((width * columns, height * rows), Image.Resampling.BICUBIC)
        corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
        return [overview, *(whole.crop((x, y, x + width, y + height)) for x, y in corners)]

    def _near(self, width: float, height: float) -> Size:
        """Of this shape, with the area of a slice, in whole patches."""
        ratio = width / height
        tall = int(self.scale_resolution / math.sqrt(ratio))
        return _multiple(int(tall * ratio), self.patch_size), _multiple(tall, self.patch_size)

    def _patches(self, part: Image.Image) -> torch.Tensor:
        """Pixels from -1 to 1, patch after patch: [3, patch, patch x patches]."""
        size = self.patch_size
        pixels = (np.asarray(part, dtype=np.float32) / 255 - 0.5) / 0.5
        rows, columns = part.height // size, part.width // size
        cut = pixels.reshape(rows, size, columns, size, 3).transpose(4, 1, 0, 2, 3)
        return torch.from_numpy(np.ascontiguousarray(cut.reshape(3, size, -1)))


def _multiple(length: float, of: int) -> int:
    return max(round(length / of) * of, of)


def _as_picture(image: Any) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    return picture.convert("RGB")
