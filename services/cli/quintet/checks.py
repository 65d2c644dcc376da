"""What can be known to be wrong with a models.yml before anything is started."""

from __future__ import annotations

from pathlib import Path

from quintet_common import checkpoint, folder
from quintet_common.footprint import too_large
from quintet_common.models_yml import Config, ConfigError, ModelSpec, load_config, read_source
from quintet_common.values import embedded_mistake


def load_checked(file: Path) -> Config:
    """The config, once every model can be there. Raises ConfigError with a line for each mistake.

    Models that lack vLLM alone hold up nobody: they will be ``failed``, and say why.
    """
    config = load_config(file)
    found = problems(config, file, without_vllm=True)
    if not config.models and not config.upstreams:
        raise ConfigError(f"{file}: there is nothing to serve: no models and no upstreams.")
    if found:
        raise ConfigError("\n".join(found))
    return config


def problems(config: Config, file: Path, *, without_vllm: bool = False) -> list[str]:
    """One line for each model that cannot be loaded from where it is said to be, or not into what it is granted, and
    for a file of keys that is not there. ``file`` is where ``config`` is from. ``without_vllm`` leaves out those that
    lack no more than vLLM."""
    found: list[tuple[list[str | int], str]] = []
    for index, spec in enumerate(config.models):
        if (mistake := _mistake(spec, without_vllm)) is not None:
            key, text = mistake
            found.append((["models", index, key], text))
    keys = config.router.keys
    if keys is not None and not Path(keys).is_file():
        found.append((["router", "keys"], f"keys: {keys} does not exist; `quintet keys add` makes it."))
    if not found:
        return []
    source = read_source(file)
    return [f"{file}:{source.line(place)}: {text}" for place, text in found]


def _mistake(spec: ModelSpec, without_vllm: bool) -> tuple[str, str] | None:
    """What is wrong with what an entry names, and the key that it is about."""
    if text := embedded_mistake(spec):
        return "path", f"path: {text}"
    if text := missing(spec) or folder.problem(spec):
        return "path", text
    config = checkpoint.config_of(spec)
    if (text := checkpoint.obstacle(spec, config)) and not (without_vllm and checkpoint.lacks_vllm(spec, config)):
        return "path", text
    try:
        return None if (text := too_large(spec)) is None else ("memory", text)
    except OSError as error:
        return "path", str(error)


def missing(spec: ModelSpec) -> str | None:
    """Why the path of ``spec`` cannot be right; None where it may be. Hub ids are not looked up."""
    if spec.embedded is not None or not spec.path.startswith(("/", "~")) or Path(spec.path).expanduser().exists():
        return None
    return f"the model {spec.id!r} is not there: {spec.path} does not exist."
