"""``quintet router``: the router alone. Its options are its own."""

from __future__ import annotations

import importlib
import sys

from quintet_common import install


def run(arguments: list[str]) -> int:
    try:
        cli = importlib.import_module("quintet_router.cli")
    except ImportError:
        print(f"The router is not installed: {install.command('quintet-router')}", file=sys.stderr)
        return 1
    cli.main(arguments)
    return 0
