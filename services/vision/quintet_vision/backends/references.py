"""How many pictures a pipeline edits from, and in which form it takes them.

Most take one for each prompt of a batch. Some take a list of pictures that the prompt speaks of, in their order, and
that list is for all prompts of a call: requests with pictures of their own cannot share one.
"""

from __future__ import annotations

from typing import Any

from quintet_common.errors import bad_request

from quintet_vision.canvas import Size, read_size
from quintet_vision.protocol import MAX_IMAGES, Draw

_OF_A_LIST = frozenset({"QwenImageEditPlusPipeline", "Flux2Pipeline", "Flux2KleinPipeline"})
_FLUX2_SIDE, _FLUX2_RATIO = 64, 8
"""FLUX.2 reads no smaller pictures, and none that are longer and thinner."""


def takes_a_list(pipe: Any) -> bool:
    return type(pipe).__name__ in _OF_A_LIST


def check_pictures(request: Draw, pipe: Any, model: str) -> None:
    """Raises ApiError 400 for pictures that ``pipe`` would not take."""
    count, most = 1 + len(request.references), MAX_IMAGES if takes_a_list(pipe) else 1
    if count > most:
        raise bad_request(
            f"{count} images were sent; the model {model!r} takes {'one' if most == 1 else f'{most} at most'}.",
            "image",
            "too_many_images",
        )
    if type(pipe).__name__.startswith("Flux2") and request.image is not None:
        for size in map(read_size, (request.image, *request.references)):
            _check_flux2(size, model)


def _check_flux2(size: Size, model: str) -> None:
    if min(size) < _FLUX2_SIDE or max(size) > _FLUX2_RATIO * min(size):
        raise bad_request(
            f"The model {model!r} takes images of at least {_FLUX2_SIDE} pixels a side, none longer than "
            f"{_FLUX2_RATIO} times its other side; one has {size[0]}x{size[1]}.",
            "image",
        )
