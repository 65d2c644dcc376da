"""``quintet router``: the router alone, in front of any servers that speak OpenAI."""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import msgspec
from quintet_common import install, server
from quintet_common.addresses import is_loopback
from quintet_common.entries import DRAIN_SECONDS, Kind
from quintet_common.memory import return_large_blocks
from quintet_common.models_yml import Balance, Config, ConfigError, RouterSpec

from quintet_router.access.gate import Gate
from quintet_router.access.keyfile import KeyFileError
from quintet_router.access.keyring import Keyring
from quintet_router.access.places import SharedPlaces
from quintet_router.access.rates import SharedRates
from quintet_router.app import Router
from quintet_router.configuration import Reloads, Sources
from quintet_router.inbound import inbound_protocol
from quintet_router.settings import MIB, Settings
from quintet_router.spans import Spans, endpoint_from, spans_to

log = logging.getLogger("quintet.router")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the router until SIGTERM or SIGINT; SIGHUP reads all its files again. Ends the process on a wrong option."""
    options = _parser().parse_args(argv)
    try:
        sources = Sources(options.upstream, options.config, options.upstreams_file, options.reload, options.only)
        config = sources.read_config()
        admission = _admission(options, config)
        settings = _settings(options, admission)
        gate = _gate(admission)
        router = Router(sources.read_upstreams(config), settings, gate, _spans(admission))
    except (ConfigError, KeyFileError, ValueError) as error:
        sys.exit(str(error))
    router.fleet.expected, router.fleet.left_out = sources.promised_by(config)
    reloads = Reloads(sources, router.fleet, settings.file_seconds, gate.keyring)
    router.metrics.more.append(reloads.metrics)
    router.background.append(reloads.watch)

    # A hostile form would write a line of log per request.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return_large_blocks()
    # What is here now stays to the end; looking through it for garbage again and again is wasted.
    gc.collect()
    gc.freeze()
    # Requests leave hardly any circles behind, so looking for them after every few is wasted, too.
    gc.set_threshold(20_000, 10, 10)
    drain = server.Drain(
        admission.drain_delay or 0.0,
        DRAIN_SECONDS if admission.grace is None else admission.grace,
        router.departure.begin,
        router.departure.close,
    )
    warn_if_open(options, gate)
    server.run(router, options, reloads.reload_all, inbound_protocol(router.answer, settings), drain)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quintet router", description="Quintet's router alone.")
    server.listen_arguments(parser)
    defaults = Settings()
    _add_upstreams(parser, defaults)
    _add_limits(parser, defaults)
    parser.add_argument("--access-log", action="store_true", help="log one JSON line per request")
    _add_admission(parser, defaults)
    return parser


def _add_limits(parser: argparse.ArgumentParser, defaults: Settings) -> None:
    add = parser.add_argument_group("limits of a request").add_argument
    add(
        "--max-body", type=_from_1, default=defaults.max_body // MIB, metavar="MIB",
        help="a larger request body gets 413 (default: %(default)s)",
    )  # fmt: skip
    think, draw = defaults.first_byte(None), defaults.first_byte("image")
    add(
        "--first-byte-timeout", type=_positive, metavar="SECONDS",
        help=f"how long a model may think before it answers (default: {think:g}, of images {draw:g})",
    )  # fmt: skip
    add(
        "--gap-timeout", type=_positive, default=defaults.gap_timeout, metavar="SECONDS",
        help="how long an answer may pause in its middle (default: %(default)g)",
    )  # fmt: skip
    add(
        "--stall-timeout", type=_positive, default=defaults.stall_timeout, metavar="SECONDS",
        help="a client that reads nothing for so long is dropped (default: %(default)g)",
    )  # fmt: skip


def _add_upstreams(parser: argparse.ArgumentParser, defaults: Settings) -> None:
    add = parser.add_argument_group("upstreams").add_argument
    add(
        "--upstream", action="append", default=[], metavar="URL",
        help="a server that speaks OpenAI, may be repeated; of dns+http://NAME:PORT every address is one",
    )  # fmt: skip
    add("--config", metavar="FILE", help="models.yml, for its upstreams and the names of its models")
    only = "of its models, those of this kind alone, may be repeated"
    add("--only", action="append", choices=get_args(Kind), metavar="KIND", help=only)
    add("--reload", action="store_true", help="read --config again when it has changed, not on SIGHUP alone")
    add("--upstreams-file", metavar="FILE", help="a list of upstreams in YAML or JSON, read again when it has changed")
    add(
        "--dns-seconds",
        type=_positive,
        default=defaults.dns_seconds,
        metavar="SECONDS",
        help="time between two look-ups of a name (default: %(default)g)",
    )
    add(
        "--balance", choices=get_args(Balance), default=defaults.balance,
        help="how replicas share requests: by conversation, by session, to the least busy (default: what fits)",
    )  # fmt: skip
    add(
        "--session-header",
        default=defaults.session_header,
        metavar="NAME",
        help="header that names a session (default: %(default)s)",
    )
    add(
        "--ca-file", metavar="FILE", help="authorities in PEM to trust beside the system's, for upstreams with https://"
    )
    add(
        "--retry-share",
        type=_not_negative,
        default=defaults.retry_share,
        metavar="SHARE",
        help="share of requests that may be sent again (default: %(default)g)",
    )


def _add_admission(parser: argparse.ArgumentParser, defaults: Settings) -> None:
    """The options that the section ``router`` of models.yml has as well; those of the command line go first."""
    add = parser.add_argument_group("admission").add_argument
    add(
        "--keys", metavar="FILE", default=os.environ.get("QUINTET_KEYS") or None,
        help="API keys, written by `quintet keys` (default: $QUINTET_KEYS); without them everyone may use the router",
    )  # fmt: skip
    add("--redis", metavar="URL", help="share the keys' limits with other routers: redis://host:6379")
    add("--traces", metavar="URL", help="send OpenTelemetry spans there: http://host:4318")
    add("--max-concurrent", type=_from_1, metavar="N", help="requests at one upstream at a time (default: any number)")
    seconds: dict[str, Any] = {"type": _not_negative, "metavar": "SECONDS"}
    waiting = f"requests that may wait for a model's upstreams, then 429 (default: {defaults.max_waiting})"
    add("--max-waiting", type=_from_0, metavar="N", help=waiting)
    held = f"how long they wait, then 503 (default: {defaults.queue_wait:g})"
    add("--queue-wait", type=_positive, metavar="SECONDS", help=held)
    add("--cors", nargs="+", metavar="ORIGIN", help="pages that may use this from a browser: https://HOST, or '*'")
    loading = f"how long a request waits for a model that is loading (default: {defaults.load_wait:g})"
    add("--load-wait", **seconds, help=loading)
    add("--drain-delay", **seconds, help="after SIGTERM, not ready but still open for so long (default: 0)")
    add("--grace", **seconds, help=f"then open requests have so long to end (default: {DRAIN_SECONDS})")


def _from_0(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 0")
    return int(text)


def _from_1(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 1")
    return int(text)


def _not_negative(text: str) -> float:
    if not (number := _float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, at least 0")
    return number


def _positive(text: str) -> float:
    if not (number := _float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _float(text: str) -> float:
    """Not a number where it is none, which compares as false with everything."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _admission(options: argparse.Namespace, config: Config) -> RouterSpec:
    """The section of models.yml with what the command line says otherwise."""
    said = {name: value for name in RouterSpec.__struct_fields__ if (value := getattr(options, name, None)) is not None}
    return msgspec.structs.replace(config.router, **said)


def _settings(options: argparse.Namespace, admission: RouterSpec) -> Settings:
    chosen = {
        name: value
        for name in ("max_concurrent", "max_waiting", "queue_wait", "load_wait", "open_metrics")
        if (value := getattr(admission, name)) is not None
    }
    settings = replace(
        Settings(),
        max_body=options.max_body * MIB,
        gap_timeout=options.gap_timeout,
        stall_timeout=options.stall_timeout,
        access_log=options.access_log,
        dns_seconds=options.dns_seconds,
        balance=options.balance,
        session_header=options.session_header,
        retry_share=options.retry_share,
        ca_file=options.ca_file,
        cors=tuple(admission.cors or ()),
        **chosen,
    )
    if options.first_byte_timeout is not None:
        settings = replace(settings, first_byte_timeout={"": options.first_byte_timeout})
    return settings


def _gate(admission: RouterSpec) -> Gate:
    """Raises KeyFileError, and ConfigError for what needs an extra that is not installed."""
    keyring = Keyring(admission.keys) if admission.keys else None
    if not admission.redis:
        return Gate(keyring)
    try:
        return Gate(keyring, SharedRates(admission.redis), SharedPlaces(admission.redis))
    except ImportError:
        raise ConfigError(f"Redis needs an extra: {install.command('quintet-router', 'redis')}") from None


def _spans(admission: RouterSpec) -> Spans | None:
    """Raises ConfigError and ValueError."""
    endpoint = endpoint_from(admission.traces)
    if endpoint is None:
        return None
    try:
        return spans_to(endpoint)
    except ImportError:
        if admission.traces:
            raise ConfigError(f"Traces need an extra: {install.command('quintet-router', 'otel')}") from None
        return None  # the environment speaks to all programs of the machine


def warn_if_open(options: argparse.Namespace, gate: Gate) -> None:
    """Say so when others than this machine can use the router without a key."""
    host = options.host
    if options.fd is not None:
        with socket.socket(fileno=os.dup(options.fd)) as listening:
            host = listening.getsockname()[0]
    if not gate.locked and not is_loopback(host):
        logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
        log.warning("NO API KEYS: everyone who reaches %s may use all models. `quintet keys add` makes keys.", host)
