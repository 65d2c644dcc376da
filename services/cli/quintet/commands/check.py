"""``quintet check``: whether models.yml is right, and the plan that it makes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quintet_common import checkpoint, hub
from quintet_common.folder import missing
from quintet_common.footprint import in_words, needed
from quintet_common.models_yml import ConfigError, ModelSpec, load_config

from quintet import fit
from quintet.checks import notes, nothing_in, problems
from quintet.supervisor.plan import ENDPOINTS
from quintet.terminal.table import columns_of, table

HEADER = ("model", "kind", "engine", "path", "weights", "memory", "endpoint", "default")
NOT_YET = "(not here yet)"
"""Of what a hub is to give."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", default="models.yml", metavar="FILE", help="what is looked at (default: models.yml)"
    )


def run(options: argparse.Namespace) -> int:
    """Print the plan. 1 when anything is wrong, with a line for each problem on standard error."""
    file = Path(options.config)
    try:
        config = load_config(file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if not config.models and not config.upstreams:
        print(nothing_in(file), file=sys.stderr)
        return 1
    rows = [_row(spec) for spec in config.models]
    lines = table(HEADER, rows, columns_of(sys.stdout)) if rows else []
    lines += [f"upstream  {upstream.url}" for upstream in config.upstreams]
    if any(hub.awaits(spec) for spec in config.models):
        lines.append(f"{NOT_YET}: {hub.source()}")
    available = fit.free()
    lines += [f"note: {line}" for line in notes(config, file, gpu=fit.has_gpu(available))]
    print("\n".join(lines))
    found = problems(config, file) + [f"{file}: {line}" for line in fit.problems(config.models, available)]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


def _row(spec: ModelSpec) -> tuple[str, ...]:
    memory = ", ".join(f"{device}: {limit}" for device, limit in spec.memory.items()) or "any"
    path = spec.path + (" (missing)" if missing(spec) else f" {NOT_YET}" if hub.awaits(spec) else "")
    default = "yes" if spec.default else ""
    return (spec.id, spec.kind, _engine(spec), path, _weights(spec), memory, ENDPOINTS[spec.kind], default)


def _engine(spec: ModelSpec) -> str:
    """``auto``, and what it comes to where that is another program."""
    goes_to_vllm = spec.engine == "auto" and checkpoint.on_vllm(spec, checkpoint.config_of(spec))
    return "auto (vllm)" if goes_to_vllm else spec.engine


def _weights(spec: ModelSpec) -> str:
    """What they take in memory, as far as their files are here."""
    try:
        size = needed(spec)
    except OSError:
        return "?"
    return "" if size is None else in_words(size)
