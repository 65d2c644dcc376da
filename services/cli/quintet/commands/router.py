"""``quintet router``: the router alone. Its options are its own."""

from __future__ import annotations

import importlib
import sys


def run(arguments: list[str]) -> int:
    try:
        cli = importlib.import_module("quintet_router.cli")
    except ImportError:
        print("The router is not installed: pip install quintet-router.", file=sys.stderr)
        return 1
    cli.main(arguments)
    return 0
