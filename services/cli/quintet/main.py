"""``quintet COMMAND``: the command line. Each command is a module of ``quintet.commands``, imported when it is used."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import sys
from collections.abc import Sequence
from types import ModuleType

from quintet_common import wording

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

WRONG_USE = 2
"""Exit status when it is not said what to do."""

NESTED = ("keys",)
"""Commands with commands of their own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Ends the process with the command's exit status."""
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()  # or the interpreter's own end would complain
    except KeyboardInterrupt:  # also while modules are imported
        status = 130
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        status = 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{error.filename or 'The output'} cannot be written: {error.strerror}.", file=sys.stderr)
        sys.stdout = None  # what it still has would be written once more at the end
        status = 1
    sys.exit(status)


def _run(arguments: Sequence[str]) -> int:
    """The command's exit status. Raises SystemExit for a wrong use, and for help."""
    if arguments and arguments[0] == "router":
        return int(importlib.import_module("quintet.commands.router").run(list(arguments[1:])))
    parser = argparse.ArgumentParser(
        prog="quintet", description="Five kinds of open models behind one OpenAI-compatible endpoint."
    )
    parser.add_argument("--version", action="version", version=f"quintet {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parsers = {
        name: commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        for name, text in COMMANDS.items()
    }
    if list(arguments) in ([], ["help"]):
        parser.print_help(sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else WRONG_USE)
    if arguments[0] not in COMMANDS:
        if not arguments[0].startswith("-"):
            hint = wording.meant(arguments[0], COMMANDS, end="; `quintet --help` lists them.")
            parser.error(f"there is no command {arguments[0]!r}{hint}")
        parser.parse_known_args([arguments[0], "check"])  # which ends here for what it knows
        parser.error(f"COMMAND comes first, and {arguments[0]} is none")
    name = arguments[0]
    command = importlib.import_module(f"quintet.commands.{name}")
    options = _parsed(name, command, parsers[name], arguments[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has not all characters still gets its lines
    return int(command.run(options))


def _parsed(
    name: str, command: ModuleType, parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> argparse.Namespace:
    """The command's own parser reads, so that its errors show its usage, and what has no ``--`` may stand anywhere."""
    command.add_arguments(parser)
    return parser.parse_args(arguments) if name in NESTED else parser.parse_intermixed_args(arguments)
