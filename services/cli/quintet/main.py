"""``quintet COMMAND``: the command line. Each command is a module of ``quintet.commands``, imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from quintet import __version__

COMMANDS = {
    "serve": "start the services of models.yml behind the router",
    "check": "say whether models.yml is right, and what it would serve",
    "pull": "download models from a hub, and check them",
    "models": "list the models of a running endpoint, with their state",
    "run": "ask one model, of any kind, from the command line",
    "keys": "make, list and revoke the API keys of the router",
    "router": "the router alone, in front of anything that speaks OpenAI",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Ends the process with the command's exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "router":
        sys.exit(importlib.import_module("quintet.commands.router").run(list(arguments[1:])))
    parser = argparse.ArgumentParser(
        prog="quintet", description="Five kinds of open models behind one OpenAI-compatible endpoint."
    )
    parser.add_argument("--version", action="version", version=f"quintet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if name == "router" or (arguments and arguments[0] != name):
            continue
        importlib.import_module(f"quintet.commands.{name}").add_arguments(command)
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has not all characters still gets its lines
    try:
        status = importlib.import_module(f"quintet.commands.{options.command}").run(options)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        status = 141
    sys.exit(status)
