"""``quintet serve``: everything in models.yml, one process per service, behind the router."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from quintet_common.addresses import port_number
from quintet_common.models_yml import ConfigError
from quintet_common.values import kind_meant

from quintet.checks import load_startable
from quintet.supervisor.plan import KINDS, SERVICES
from quintet.supervisor.sockets import ListenError, listen
from quintet.supervisor.supervisor import Options, Supervisor
from quintet.terminal.screen import Screen

WRONG_CONFIG = 2
PORT_TAKEN = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", default="models.yml", metavar="FILE", help="what is served (default: models.yml)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=port_number, default=8000, help="port of the endpoint (default: 8000)")
    parser.add_argument("--reload", action="store_true", help="apply changes of models.yml as they are saved")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="KIND",
        help=f"serve these kinds alone: {', '.join(sorted(KINDS))}",
    )
    parser.add_argument(
        "--log-level",
        default="warning",
        choices=["debug", "info", "warning", "error"],
        help="which lines of the services reach the terminal (default: warning); the log files have all",
    )
    parser.add_argument(
        "--logs", metavar="FOLDER", help="where the log files are (default: ~/.cache/quintet/logs/PORT)"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until stopped. 0 after Ctrl-C or SIGTERM, 2 when models.yml is wrong, or nothing of it could be started; 1
    when the port is taken. Models that cannot be loaded are said, and hold up nobody."""
    file = Path(options.config)
    try:
        kinds = chosen_kinds(options.only)
        config, failing = load_startable(file, kinds)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return WRONG_CONFIG
    try:
        listening = listen(options.host, options.port)
    except ListenError as error:
        print(error, file=sys.stderr)
        return PORT_TAKEN
    logs = Path(options.logs) if options.logs else None
    asked = Options(file.resolve(), options.host, options.port, options.reload, kinds, options.log_level, logs)
    screen = Screen(sys.stdout)
    count = len(config.of_kinds(set(kinds)))
    print(*failing, *_summary(len(failing), count), sep="\n", end="\n" if failing else "", file=sys.stderr, flush=True)
    screen.say(f"Starting {_models(count - len(failing))} from {file} …")

    async def serve() -> None:
        await Supervisor(asked, config, listening, screen).run()

    asyncio.run(serve())
    return 0


def _summary(failing: int, count: int) -> list[str]:
    if not failing:
        return []
    return [f"{failing} of {_models(count)} will be failed until that is changed. The others are started."]


def _models(count: int) -> str:
    return f"{count} {'model' if count == 1 else 'models'}"


def chosen_kinds(only: list[str] | None) -> frozenset[str]:
    """The kinds that ``--only`` names, by themselves or by their service; all without it. Raises ConfigError."""
    if not only:
        return KINDS
    of_service = {service.name: service.kinds for service in SERVICES}
    chosen: set[str] = set()
    for word in ",".join(only).replace(" ", ",").strip(",").split(","):
        if not word and chosen:  # a comma and a space, as people write lists
            continue
        if word not in KINDS and word not in of_service:
            known = sorted(KINDS)
            raise ConfigError(f"--only: {word!r} is not one of {', '.join(known)}{kind_meant(word, known)}")
        chosen |= {word} if word in KINDS else of_service[word]
    return frozenset(chosen)
