"""Tool calls: one module per family of formats, found by name."""

from __future__ import annotations

from quintet_chat.tools.base import Family
from quintet_chat.tools.glm4 import Glm4
from quintet_chat.tools.hermes import Hermes
from quintet_chat.tools.llama3 import Llama3
from quintet_chat.tools.mistral import Mistral

FAMILIES: dict[str, Family] = {family.name: family for family in (Hermes(), Glm4(), Llama3(), Mistral())}
"""Every family by its name, as models.yml and the worker's info write it."""
