"""The configuration of MiniCPM-V-2_6: that of a Qwen2, with a vision tower's in it."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config, SiglipVisionConfig


class MiniCPMVConfig(Qwen2Config):  # type: ignore[misc]
    model_type = "minicpmv"

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        version: float = 2.6,
        query_num: int = 64,
        image_size: int = 448,
        drop_vision_last_layer: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vision_config = SiglipVisionConfig(**(vision_config or {}))
        self.version = version
        self.query_num = query_num
        self.image_size = image_size
        self.drop_vision_last_layer = drop_vision_last_layer
        super().__init__(**kwargs)
