"""Guidance by its families: what ``guidance_scale`` and ``negative_prompt`` mean to a pipeline, if anything.

Most guide by a second run without the prompt, or with the negative one, when the scale is above 1. Qwen-Image calls
that scale ``true_cfg_scale``. FLUX.1 dev was trained to take the scale as an input, and its schnell takes none.
"""

from __future__ import annotations

import inspect
from typing import Any

from quintet_common.errors import bad_request

from quintet_vision.protocol import Draw


def check_negative_prompt(request: Draw, scale: float, off: float = 1.0) -> None:
    """Raises ApiError 400 for a negative prompt beside a scale that switches guidance off, as ``off`` and less do."""
    if request.negative_prompt and scale <= off:
        raise bad_request(f"negative_prompt works with a guidance_scale above {off:g} only.", "negative_prompt")


class Guidance:
    def __init__(self, pipe: Any) -> None:
        signature = inspect.signature(pipe.__call__).parameters
        network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        config = getattr(network, "config", None)
        by_name = {name: signature[name].default for name in ("guidance_scale", "true_cfg_scale") if name in signature}
        self._key: str | None = "guidance_scale" if by_name.get("guidance_scale") is not None else "true_cfg_scale"
        is_input = len(by_name) == 2 and self._key == "guidance_scale"
        if self._key not in by_name or (is_input and not getattr(config, "guidance_embeds", False)):
            self._key = None
        if getattr(pipe.config, "is_distilled", False):  # FLUX.2 klein: it would ignore the scale
            self._key = None
        is_input = is_input or getattr(config, "time_cond_proj_dim", None) is not None
        self._has_negative = self._key is not None and "negative_prompt" in signature and not is_input
        self._off = 0.0 if type(pipe).__name__.startswith("ZImage") else 1.0  # its scale is one less than others'
        self.default = float(by_name[self._key]) if self._key is not None else 1.0

    def check(self, request: Draw, scale: float, model: str) -> None:
        """Raises ApiError 400 for what would be without effect."""
        if self._key is None and request.guidance is not None:
            raise bad_request(f"The model {model!r} takes no guidance_scale.", "guidance_scale")
        if request.negative_prompt and not self._has_negative:
            raise bad_request(f"The model {model!r} takes no negative prompt.", "negative_prompt")
        check_negative_prompt(request, scale, self._off)

    def inputs(self, scale: float, negative_prompts: list[str]) -> dict[str, Any]:
        """For a call of the pipeline."""
        inputs: dict[str, Any] = {} if self._key is None else {self._key: scale}
        if self._has_negative:
            inputs["negative_prompt"] = negative_prompts
        return inputs
