"""What can be known to be wrong with a models.yml before anything is started."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from quintet_common import checkpoint, embedded, folder
from quintet_common.footprint import too_large
from quintet_common.models_yml import Config, ConfigError, ModelSpec, load_config, read_source
from quintet_common.values import embedded_mistake
from quintet_common.yaml_source import Source

from quintet import fit


class Problem(NamedTuple):
    """What is wrong with the value at ``place``; with one of ``spec``, where that is set."""

    place: list[str | int]
    text: str
    spec: ModelSpec | None = None


def load_startable(file: Path, kinds: Set[str]) -> tuple[Config, list[str]]:
    """The config, and a line for each model of ``kinds`` that will be ``failed``, because it cannot be loaded.

    Raises ConfigError with a line for each mistake when the file is wrong, or nothing of it could be started.
    """
    if file.exists() and not file.is_file() and not file.is_dir():
        raise ConfigError(f"{file}: is a pipe or a device; each service reads it, so it has to be a file.")
    config = load_config(file)
    if not config.models and not config.upstreams:
        raise ConfigError(nothing_in(file))
    wanted = config.of_kinds(set(kinds))
    if not wanted and not config.upstreams:
        raise ConfigError(f"{file}: no model is of kind {', '.join(sorted(kinds))}.")
    found = [each for each in _problems(config) if each.spec is None or each.spec.kind in kinds]
    lines = _lines(found, file)
    faulty = {each.spec.id for each in found if each.spec is not None}
    if any(each.spec is None for each in found) or (len(faulty) == len(wanted) and not config.upstreams):
        raise ConfigError("\n".join(lines))
    return config, lines


def load_changed(file: Path, running: Config) -> Config:
    """The config that takes the place of the one that runs. A model that was changed and cannot be loaded refuses it
    whole; one that could not be loaded before, and is as it was, does not.

    Models that lack vLLM alone hold up nobody: they will be ``failed``, and say why. Raises ConfigError.
    """
    config = load_config(file)
    if not config.models and not config.upstreams:
        raise ConfigError(nothing_in(file))
    before = {spec.id: spec.for_worker for spec in running.models}
    found = [
        each
        for each in _problems(config)
        if each.spec is None or (each.spec.for_worker != before.get(each.spec.id) and not _lacks_vllm(each.spec))
    ]
    if found:
        raise ConfigError("\n".join(_lines(found, file)))
    return config


def nothing_in(file: Path) -> str:
    """The refusal of a file that names nothing."""
    return f"{file}: there is nothing to serve: no models and no upstreams."


def problems(config: Config, file: Path) -> list[str]:
    """One line for each model that cannot be loaded from where it is said to be, or not into what it is granted, and
    for a file of keys that is not there. ``file`` is where ``config`` is from."""
    return _lines(list(_problems(config)), file)


def notes(config: Config, file: Path, *, gpu: bool) -> list[str]:
    """One line for each value that is right and does nothing here, or not all that it says. ``gpu``: there is one."""
    found = []
    for index, spec in enumerate(config.models):
        if _mistake(spec) is None and not _on_vllm(spec):
            found += [Problem(["models", index, key], text, spec) for key, text in _idle(spec, gpu)]
    return _lines(found, file)


def _idle(spec: ModelSpec, gpu: bool) -> Iterator[tuple[str, str]]:
    known = embedded.EMBEDDED.get(spec.embedded or "")
    named = [device for device in spec.memory if isinstance(device, int)]
    if known is not None and not known.on_gpu:
        if spec.device.startswith("cuda"):
            yield "device", f"device: {spec.path} runs on the CPU alone."
        if named:
            yield "memory", f"memory: {spec.path} runs on the CPU alone, whatever it is granted of GPUs."
    elif named and not gpu:
        yield "memory", "memory: there is no GPU here; the model runs on the CPU, where limits of GPUs do not count."
    most = checkpoint.positions(spec, checkpoint.config_of(spec))
    if spec.kind in checkpoint.KINDS and spec.context is not None and most is not None and spec.context > most:
        yield "context", f"context: {spec.context} is more than the {most} tokens of the model itself, which count."


def _problems(config: Config) -> list[Problem]:
    found: list[Problem] = []
    for index, spec in enumerate(config.models):
        if (mistake := _mistake(spec)) is not None:
            key, text = mistake
            found.append(Problem(["models", index, key], text, spec))
    keys = config.router.keys
    if keys is not None and not Path(keys).is_file():
        text = f"keys: {keys} does not exist; `quintet keys add` makes it."
        found.append(Problem(["router", "keys"], text))
    return found


def _lines(found: Sequence[Problem], file: Path) -> list[str]:
    source = read_source(file) if found else None
    return [f"{file}:{source.line(each.place)}: {_named(each, source)}" for each in found if source is not None]


def _named(problem: Problem, source: Source) -> str:
    """The text, with the key that the file writes for ours."""
    key = problem.place[-1]
    return re.sub(rf"(^|, but ){key}\b", lambda match: f"{match[1]}{source.name_of(key)}", problem.text)


def _mistake(spec: ModelSpec) -> tuple[str, str] | None:
    """What is wrong with what an entry names, and the key that it is about."""
    if text := embedded_mistake(spec):
        return "path", f"path: {text}"
    if text := folder.missing(spec) or folder.problem(spec) or checkpoint.obstacle(spec, checkpoint.config_of(spec)):
        return "path", text
    if text := checkpoint.beyond(spec, checkpoint.config_of(spec)):
        return "context", text
    if _wants_gpu(spec) and not fit.has_gpu(fit.free()):
        return "device", f"device: {spec.device}: there is no GPU here."
    try:
        return None if (text := too_large(spec)) is None else ("memory", text)
    except OSError as error:
        return "path", str(error)


def _lacks_vllm(spec: ModelSpec) -> bool:
    """Whether no more than vLLM is missing."""
    return folder.problem(spec) is None and checkpoint.lacks_vllm(spec, checkpoint.config_of(spec))


def _wants_gpu(spec: ModelSpec) -> bool:
    """Whether the model cannot be loaded here without one. What others run, or the CPU alone, can be."""
    known = embedded.EMBEDDED.get(spec.embedded or "")
    elsewhere = spec.engine_args.get("url") is not None
    return spec.device.startswith("cuda") and not elsewhere and (known is None or known.on_gpu)


def _on_vllm(spec: ModelSpec) -> bool:
    """vLLM has rules of its own for the same keys."""
    return checkpoint.on_vllm(spec, checkpoint.config_of(spec))
