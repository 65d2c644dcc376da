"""``python -m quintet_SERVICE``: one service in one process. Also how the router runs its app."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from quintet_common import folder
from quintet_common.addresses import port_number, port_refused
from quintet_common.entries import DRAIN_SECONDS
from quintet_common.models_yml import ConfigError, ModelSpec, load_config
from quintet_common.pool import ModelPool

log = logging.getLogger("quintet")

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open here; the router's pool lets go of its end earlier."""


def _nothing() -> None: ...


@dataclass(frozen=True)
class Drain:
    """How a server leaves after SIGTERM or SIGINT, in seconds.

    For ``delay`` it goes on as before, while whoever sends it requests learns of it; a second signal ends that. Then it
    stops to listen, and requests in flight have ``grace``. ``on_signal`` and ``on_close`` are called at the beginning
    of the two.
    """

    delay: float = 0.0
    grace: float = DRAIN_SECONDS
    on_signal: Callable[[], None] = _nothing
    on_close: Callable[[], None] = _nothing


def listen_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of everything that listens."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=port_number, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--fd", type=int, metavar="FD", help="listen on this inherited socket instead of host and port")
    parser.add_argument("--lifeline", type=int, metavar="FD", help="end when this inherited descriptor is closed")
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument("--log-level", default="info", choices=levels, help="which lines are logged (default: info)")


def main(service: str, kinds: set[str], create: Callable[[list[ModelSpec]], FastAPI]) -> None:
    """The command line of a service. ``create`` makes its app from the models of its kinds."""
    parser = argparse.ArgumentParser(prog=f"quintet {service}", description=f"Quintet's {service} service alone.")
    parser.add_argument(
        "config", nargs="?", default="models.yml", metavar="FILE", help="what is served (default: models.yml)"
    )
    parser.add_argument("--only", action="append", choices=sorted(kinds), help="serve this kind alone, may be repeated")
    listen_arguments(parser)
    add = parser.add_argument
    seconds: dict[str, Any] = {"type": float, "metavar": "SECONDS"}
    delay = "after SIGTERM, not ready but still open for so long (default: 0)"
    add("--drain-delay", **seconds, default=0, help=delay)
    grace = f"then open requests have so long to end (default: {DRAIN_SECONDS})"
    add("--grace", **seconds, default=DRAIN_SECONDS, help=grace)
    options = parser.parse_args()
    kinds = kinds & set(options.only or kinds)
    try:
        app = create(load_config(options.config).of_kinds(kinds))
    except ConfigError as error:
        sys.exit(str(error))
    pool: ModelPool[Any] = app.state.pool
    drain = Drain(options.drain_delay, options.grace, pool.leave)
    run(app, options, Reload(options.config, kinds, pool, drain.grace), drain=drain)


class Reload:
    """Reads models.yml again for ``pool``, which has the models of ``kinds``. One reading follows the other, and the
    last one counts. Requests in models that change or go have ``grace`` seconds to end."""

    def __init__(self, file: str, kinds: set[str], pool: ModelPool[Any], grace: float = DRAIN_SECONDS) -> None:
        self._file = file
        self._kinds = kinds
        self._pool = pool
        self._grace = grace
        self._turn = asyncio.Lock()

    async def __call__(self) -> None:
        async with self._turn:
            running = {worker.spec.id: worker.spec.for_worker for worker in self._pool}
            try:  # files may be large, and on disks that are slow or gone: streams go on meanwhile
                specs = await asyncio.to_thread(self._read, running)
            except (ConfigError, OSError) as error:
                log.error("%s not reloaded, what runs goes on: %s", self._file, error)
            else:
                await self._pool.apply(specs, self._grace)

    def _read(self, running: Mapping[str, ModelSpec]) -> list[ModelSpec]:
        """Raises ConfigError, also for models that would be loaded in place of what runs, and cannot be."""
        specs = load_config(self._file).of_kinds(self._kinds)
        changed = [spec for spec in specs if running.get(spec.id) != spec.for_worker]
        if wrong := [text for spec in changed if (text := folder.problem(spec)) is not None]:
            raise ConfigError("\n".join(wrong))
        return specs


def run(
    app: ASGIApp,
    options: argparse.Namespace,
    reload: Callable[[], Awaitable[None]] | None = None,
    http: type[asyncio.Protocol] | Literal["httptools"] = "httptools",
    drain: Drain | None = None,
) -> None:
    """Serve ``app`` until SIGTERM or SIGINT; SIGHUP calls ``reload``. ``http`` is uvicorn's protocol class.

    After SIGINT it returns as if nothing was wrong; a SIGTERM is given on to the process, which ends by it.
    """
    drain = drain or Drain()
    if options.fd is None and (reason := _unusable(options.host, options.port)):
        sys.exit(reason)
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(name)s %(message)s")
    for chatty in ("httpx2", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        loop="uvloop",
        http=http,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is; links are made from the headers themselves
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain.grace,  # type: ignore[arg-type]  # waits for any number of seconds
    )
    sockets = None if options.fd is None else [socket.socket(fileno=options.fd)]
    # What uvicorn raises once more behind a Ctrl-C is for those who do not end by it.
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(_Server(config, drain), sockets, options.lifeline, reload))


def _unusable(host: str, port: int) -> str | None:
    """Why the port cannot be listened on, before anything is loaded for those who would ask there."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:  # what else there may be, uvicorn says
        reason = port_refused(error, port)
        return None if reason is None else f"{reason}."
    return None


class _Server(uvicorn.Server):
    """uvicorn's server that goes on for a while after the first signal."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._leaving = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        first, self._leaving = not self._leaving, True
        if first:
            self._drain.on_signal()
        if first and self._drain.delay and self.started:
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._drain.delay, super().handle_exit, sig, frame)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._drain.on_close()
        await super().shutdown(sockets)


async def _serve(
    server: uvicorn.Server,
    sockets: list[socket.socket] | None,
    lifeline: int | None,
    reload: Callable[[], Awaitable[None]] | None,
) -> None:
    loop = asyncio.get_running_loop()
    running: set[asyncio.Future[None]] = set()  # the loop itself keeps only weak references

    def start_reload() -> None:
        assert reload is not None
        task = asyncio.ensure_future(reload())
        running.add(task)
        task.add_done_callback(running.discard)

    def parent_gone() -> None:
        assert lifeline is not None
        loop.remove_reader(lifeline)
        os.kill(os.getpid(), signal.SIGTERM)

    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, start_reload)
    if lifeline is not None:
        loop.add_reader(lifeline, parent_gone)
    await server.serve(sockets)
