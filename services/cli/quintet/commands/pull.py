"""``quintet pull``: models from a hub, before they are needed."""

from __future__ import annotations

from quintet_common.pull import add_arguments, run

__all__ = ["add_arguments", "run"]
