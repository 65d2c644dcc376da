"""Tool calls and thinking: one module per family of formats, found by name."""

from __future__ import annotations

from quintet_chat.tools.base import Family
from quintet_chat.tools.deepseek import DEEPSEEK, DEEPSEEK_V31
from quintet_chat.tools.glm4 import GLM4
from quintet_chat.tools.glm45 import GLM45, GLM47
from quintet_chat.tools.harmony import Harmony
from quintet_chat.tools.hermes import HERMES
from quintet_chat.tools.llama3 import LLAMA3
from quintet_chat.tools.minimax_m2 import MINIMAX_M2
from quintet_chat.tools.mistral import MISTRAL, MISTRAL_ARGS
from quintet_chat.tools.qwen3_coder import QWEN3_CODER, SEED_OSS
from quintet_chat.tools.thinking import TAGS

HARMONY = Harmony()

_FAMILIES: tuple[Family, ...] = (
    *(HERMES, GLM4, LLAMA3, MISTRAL, MISTRAL_ARGS, DEEPSEEK, DEEPSEEK_V31, HARMONY),
    *(QWEN3_CODER, SEED_OSS, GLM45, GLM47, MINIMAX_M2),
)

FAMILIES = {family.name: family for family in _FAMILIES}
"""Every family of tool calls by its name, as models.yml and the worker's info write it."""

THINKING = frozenset({*TAGS, HARMONY.name})
"""Every style of thinking by its name."""
