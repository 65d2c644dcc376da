"""Limits of the time steps of Mamba layers, where transformers takes others than the model was trained with.

Nemotron-H's are in its configuration, as a rule none; Zamba2 has none. transformers computes their prompts with the
least step that weights are made random with (0.001), and answers without (transformers#48989): a text then depends on
which of its tokens came as a prompt, and is not what the makers' own code says.
"""

from __future__ import annotations

import math
from typing import Any

NONE = (0.0, math.inf)


def settle_limits(model: Any) -> int:
    """Let the layers of ``model`` keep to its configuration; the number of those that were changed."""
    least, most = map(float, getattr(model.config.get_text_config(), "time_step_limit", None) or NONE)
    others = [each for each in model.modules() if getattr(each, "time_step_limit", (least, most)) != (least, most)]
    for each in others:
        each.time_step_limit = (least, most)
    return len(others)
