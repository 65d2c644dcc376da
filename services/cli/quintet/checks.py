"""What can be known to be wrong with a models.yml before anything is started."""

from __future__ import annotations

from pathlib import Path

from quintet_common import checkpoint
from quintet_common.footprint import needed, too_large
from quintet_common.models_yml import Config, ConfigError, ModelSpec, line_in, load_config
from quintet_common.values import embedded_mistake


def load_checked(file: Path) -> Config:
    """The config, once every model can be there. Raises ConfigError with one line."""
    config = load_config(file)
    found = problems(config, file)
    if not config.models and not config.upstreams:
        raise ConfigError(f"{file}: there is nothing to serve: no models and no upstreams.")
    if found:
        raise ConfigError(found[0])
    return config


def problems(config: Config, file: Path) -> list[str]:
    """One line for each model that cannot be loaded from where it is said to be, or not into what it is granted, and
    for a file of keys that is not there. ``file`` is where ``config`` is from."""
    found = []
    for index, spec in enumerate(config.models):
        if text := embedded_mistake(spec):
            found.append(f"{file}:{line_in(file, ['models', index, 'path'])}: path: {text}")
        elif text := missing(spec) or checkpoint.obstacle(spec, checkpoint.config_of(spec)) or _misfit(spec):
            found.append(f"{file}: {text}")
    keys = config.router.keys
    if keys is not None and not Path(keys).is_file():
        line = line_in(file, ["router", "keys"])
        found.append(f"{file}:{line}: keys: {keys} does not exist; `quintet keys add` makes it.")
    return found


def _misfit(spec: ModelSpec) -> str | None:
    """Why its weights cannot be read, or are more than its entry grants."""
    try:
        needed(spec)
        return too_large(spec)
    except OSError as error:
        return str(error)


def missing(spec: ModelSpec) -> str | None:
    """Why the path of ``spec`` cannot be right; None where it may be. Hub ids are not looked up."""
    if spec.embedded is not None or not spec.path.startswith(("/", "~")) or Path(spec.path).expanduser().exists():
        return None
    return f"the model {spec.id!r} is not there: {spec.path} does not exist."
