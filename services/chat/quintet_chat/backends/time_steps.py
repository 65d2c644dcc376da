"""Limits of the time steps of Mamba layers, where transformers takes others than the model was trained with.

Nemotron-H's are in its configuration, as a rule none. transformers computes prompts with the least step of another
family (0.001) and answers without (transformers#48989): a text then depends on which of its tokens came as a prompt,
and is not what the makers' own code says.
"""

from __future__ import annotations

from typing import Any


def settle_limits(model: Any) -> int:
    """Let the layers of ``model`` keep to its configuration; the number of those that were changed."""
    limits = getattr(model.config.get_text_config(), "time_step_limit", None)
    if limits is None:
        return 0
    least, most = map(float, limits)
    others = [each for each in model.modules() if getattr(each, "time_step_limit", (least, most)) != (least, most)]
    for each in others:
        each.time_step_limit = (least, most)
    return len(others)
