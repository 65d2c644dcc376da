"""``--help``: everything that can be given has its text, and all texts are of one form."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

import pytest
from quintet.main import COMMANDS
from quintet_common.server import listen_arguments
from quintet_router.cli import _parser

PARSED = [name for name in COMMANDS if name != "router"]


def of_command(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="There is one.")
    importlib.import_module(f"quintet.commands.{name}").add_arguments(parser)
    return parser


def of_service() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="There is one.")
    listen_arguments(parser)
    return parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for nested in action.choices.values():
                yield from parsers(nested)


@pytest.mark.parametrize("command", [*PARSED, "router", "service"])
def test_everything_has_its_text(command: str) -> None:
    top = {"router": _parser, "service": of_service}.get(command, lambda: of_command(command))()
    for parser in parsers(top):
        assert parser.description, parser.prog
        for action in parser._actions:
            if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
                continue
            text, name = action.help or "", action.option_strings or action.dest
            assert text, f"{command}: {name} has no text"
            assert not text.startswith(("(", "default")), f"{command}: {name} says its default alone"
            assert not text.endswith("."), f"{command}: {name} is no sentence"
            assert text[0].islower() or text.split()[0].isupper(), f"{command}: {name} begins with a capital letter"
            shown = action.metavar or action.dest.upper() if action.nargs != 0 and not action.choices else "X"
            assert str(shown).isupper() or "/" in str(shown), f"{command}: {name} takes {shown}"
        parser.format_help()  # a stray % would fail here
