"""``quintet router``: the router alone, in front of any servers that speak OpenAI."""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from quintet_common import server
from quintet_common.models_yml import Config, ConfigError, UpstreamSpec, load_config

from quintet_router.app import Router
from quintet_router.inbound import inbound_protocol
from quintet_router.settings import MIB, Settings

log = logging.getLogger("quintet.router")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the router until SIGTERM or SIGINT; SIGHUP reads ``--config`` again. Ends the process on a wrong option."""
    options = _parser().parse_args(argv)
    settings = replace(
        Settings(),
        max_body=options.max_body * MIB,
        gap_timeout=options.gap_timeout,
        stall_timeout=options.stall_timeout,
        access_log=options.access_log,
    )
    if options.first_byte_timeout is not None:
        settings = replace(settings, first_byte_timeout={"": options.first_byte_timeout})
    try:
        config = _config(options)
        router = Router(_upstreams(options, config), settings)
    except (ConfigError, ValueError) as error:
        sys.exit(str(error))
    router.fleet.expected = _names(config)

    async def reload() -> None:
        try:
            changed = _config(options)
            await router.fleet.apply(_upstreams(options, changed))
            router.fleet.expected = _names(changed)
        except (ConfigError, ValueError) as error:
            log.error("%s not reloaded, what runs goes on: %s", options.config, error)

    # A hostile form would write a line of log per request.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # What is here now stays to the end; looking through it for garbage again and again is wasted.
    gc.collect()
    gc.freeze()
    server.run(router, options, reload, inbound_protocol(settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quintet router", description="Quintet's router alone.")
    server.listen_arguments(parser)
    defaults = Settings()
    parser.add_argument(
        "--upstream", action="append", default=[], metavar="URL", help="a server that speaks OpenAI; may be repeated"
    )
    parser.add_argument("--config", help="models.yml, for its upstreams and the names of its models")
    parser.add_argument("--max-body", type=int, default=defaults.max_body // MIB, metavar="MIB")
    parser.add_argument("--first-byte-timeout", type=float, metavar="SECONDS", help="how long a model may think")
    parser.add_argument("--gap-timeout", type=float, default=defaults.gap_timeout, metavar="SECONDS")
    parser.add_argument("--stall-timeout", type=float, default=defaults.stall_timeout, metavar="SECONDS")
    parser.add_argument("--access-log", action="store_true", help="one JSON line per request")
    return parser


def _config(options: argparse.Namespace) -> Config:
    return load_config(options.config) if options.config else Config()


def _upstreams(options: argparse.Namespace, config: Config) -> list[UpstreamSpec]:
    """Those of the command line, then those of the file. Raises ConfigError when there is none."""
    specs = [*(UpstreamSpec(url=url) for url in options.upstream), *config.upstreams]
    if not specs:
        raise ConfigError("No upstream: give --upstream URL, or upstreams: in the file of --config.")
    urls = [spec.url for spec in specs]
    if twice := next((url for url in urls if urls.count(url) > 1), None):
        raise ConfigError(f"The upstream {twice} is given twice.")
    return specs


def _names(config: Config) -> frozenset[str]:
    return frozenset(name for spec in config.models for name in spec.names)
