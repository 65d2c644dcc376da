"""``quintet keys``: the API keys of the router. A key is shown once, when it is made; the file has its hash."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from quintet_common import install

from quintet.terminal.table import columns_of, table

HEADER = ("name", "models", "per minute", "at once", "admin", "since")
DEFAULT_FILE = "keys.yml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    what = {"add": "make a key and print it, this once", "list": "list the keys", "revoke": "make a key worthless"}
    add, show, revoke = (
        actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".") for name, text in what.items()
    )
    add.add_argument("name", metavar="NAME", help="whose key it is: letters, digits and . _ @ -")
    add.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="what it may use: ids, aliases, or patterns like 'qwen*' (default: all)",
    )
    add.add_argument("--requests-per-minute", type=int, metavar="N", help="how many it may make (default: any number)")
    add.add_argument("--concurrent-requests", type=int, metavar="N", help="how many at once (default: any number)")
    add.add_argument("--admin", action="store_true", help="may look at /admin, too")
    revoke.add_argument("name", metavar="NAME", help="whose key it is, as `quintet keys list` has it")
    for action in (add, show, revoke):
        action.add_argument("--file", type=Path, default=Path(DEFAULT_FILE), help=f"the keys (default: {DEFAULT_FILE})")


def run(options: argparse.Namespace) -> int:
    """1 when the file cannot be used or the key is not there; a router that runs notices the change by itself."""
    try:
        from quintet_router.access.keyfile import KeyFileError, changing
    except ImportError:
        print(f"The router is not installed: {install.command('quintet-router')}", file=sys.stderr)
        return 1
    try:
        with changing(options.file):
            return {"add": _add, "list": _list, "revoke": _revoke}[options.action](options)
    except KeyFileError as error:
        print(error, file=sys.stderr)
        return 1


def _add(options: argparse.Namespace) -> int:
    from quintet_router.access import keyfile

    file: Path = options.file
    keys = keyfile.read(file) if file.exists() else []
    if any(key.name == options.name for key in keys):
        raise keyfile.KeyFileError(f"{file} has a key {options.name!r} already; revoke it first.")
    secret = keyfile.new_secret()
    keys.append(
        keyfile.make_key(
            name=options.name,
            sha256=keyfile.digest(secret.encode()).hex(),
            models=options.models,
            requests_per_minute=options.requests_per_minute,
            concurrent_requests=options.concurrent_requests,
            admin=options.admin,
            created=date.today(),
        )
    )
    keyfile.write(file, keys)
    print(secret)
    print(f"This is the only time that the key is shown; {file} has its hash.", file=sys.stderr)
    return 0


def _list(options: argparse.Namespace) -> int:
    from quintet_router.access import keyfile

    rows = [
        (
            key.name,
            ", ".join(key.models) if key.models is not None else "all",
            str(key.requests_per_minute or "any"),
            str(key.concurrent_requests or "any"),
            "yes" if key.admin else "",
            key.created.isoformat() if key.created else "",
        )
        for key in keyfile.read(options.file)
    ]
    print("\n".join(table(HEADER, rows, columns_of(sys.stdout))))
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from quintet_router.access import keyfile

    keys = keyfile.read(options.file)
    left = [key for key in keys if key.name != options.name]
    if len(left) == len(keys):
        raise keyfile.KeyFileError(f"{options.file} has no key {options.name!r}.")
    keyfile.write(options.file, left)
    return 0
