"""``zlai_models``: ``quintet serve`` under the name and with the options that ZLAI's users type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from quintet_common.addresses import port_number

from quintet.commands import serve


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. ``--reload`` is 0 or 1, as ZLAI's page has it; alone it means 1."""
    parser = argparse.ArgumentParser(prog="zlai_models", description="quintet serve, as ZLAI's users call it.")
    add = parser.add_argument
    add("--config_path", default="./models_config.yml", help="the file (default: ./models_config.yml); or a models.yml")
    add("--port", type=port_number, default=8000, help="port of the endpoint (default: 8000)")
    add("--host", default="localhost", help="address to listen on (default: localhost, this machine alone)")
    reload = "1: apply changes of the file as they are saved (default: 0)"
    add("--reload", type=_flag, nargs="?", const=True, default=False, metavar="0|1", help=reload)
    given = parser.parse_args(arguments)
    words = [given.config_path, f"--host={given.host}", f"--port={given.port}", *(["--reload"] if given.reload else [])]
    ours = argparse.ArgumentParser()
    serve.add_arguments(ours)
    sys.exit(serve.run(ours.parse_args(words)))


def _flag(text: str) -> bool:
    words = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1")
    return words[text.lower()]
