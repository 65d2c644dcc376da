"""Which file here loads a model: told by its embedded name, its ``engine`` setting, or what is in its folder."""

from __future__ import annotations

from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report

from quintet_tts.backends import Backend, embedded
from quintet_tts.voices import Catalogue

Loaded = tuple[Catalogue, dict[str, Backend]]
"""The voices of a model, and the engine behind each by its name in ``Voice.engine``."""


def load(spec: ModelSpec, report: Report) -> Loaded:
    """Load the model of ``spec``. Raises LoadError."""
    if spec.embedded == "hibari":
        return embedded.load(spec, report)
    raise LoadError(f"{spec.path!r} is not a speech model that this version can load; there is 'embedded:hibari'.")
