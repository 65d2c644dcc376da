"""How models with two sets of rotation factors number their tokens (longrope: Phi-3 and Phi-4-mini with 128k tokens).

transformers takes the long set for a whole pass as soon as one of its tokens is beyond the original length. Here texts
of any length share a pass, prompts are computed in pieces and beginnings are kept, so keys that were turned by the one
set would meet queries of the other. One set is taken for everything instead, as vLLM does.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_TWO_SETS = "longrope"


@torch.no_grad()
def settle_factors(model: Any, context: int) -> int:
    """Let ``model`` turn by its long factors alone if ``context`` is beyond its original length, else by the short.

    The number of rotations that were changed.
    """
    changed = 0
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        for kind, rope_type in types.items() if isinstance(types, dict) else [(None, types)]:
            if rope_type == _TWO_SETS and context > _original(module, kind):
                prefix = "" if kind is None else f"{kind}_"
                frequencies = getattr(module, f"{prefix}inv_freq")
                long, _ = ROPE_INIT_FUNCTIONS[_TWO_SETS](
                    module.config, frequencies.device, seq_len=_original(module, kind) + 1, layer_type=kind
                )
                # In place: recorded steps know where they are.
                for each in (frequencies, getattr(module, f"{prefix}original_inv_freq")):
                    each.copy_(long)
                changed += 1
    return changed


def _original(module: Any, kind: str | None) -> int:
    parameters = module.config.rope_parameters
    return int((parameters if kind is None else parameters[kind])["original_max_position_embeddings"])
