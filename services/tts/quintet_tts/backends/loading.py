"""Which file here loads a model: told by its embedded name, its ``engine`` setting, or what is in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quintet_common import install
from quintet_common.engine_args import Nothing
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report, settings

from quintet_tts.backends import Backend
from quintet_tts.cosyvoice.settings import check_version, recognised
from quintet_tts.voices import Catalogue

Loaded = tuple[Catalogue, Mapping[str, Backend]]
"""The voices of a model, and the engine behind each by its name in ``Voice.engine``."""

_EMBEDDED = {"hibari": "hibari", "kokoro": "kokoro"}


def load(spec: ModelSpec, report: Report) -> Loaded:
    """Load the model of ``spec``. Raises LoadError."""
    engine = _engine_of(spec)
    if engine not in (None, "cosyvoice"):
        settings(spec, Nothing)
    if engine == "hibari":
        from quintet_tts.backends import embedded

        return embedded.load(spec, report)
    if engine == "kokoro":
        from quintet_tts.backends import kokoro

        return kokoro.load(spec, report)
    if engine == "piper":
        from quintet_tts.backends import piper

        return piper.load(spec, report)
    if engine == "cosyvoice":
        return _cosyvoice(spec, report)
    raise LoadError(
        f"{spec.path!r} is not a speech model that this version can load. There are 'embedded:hibari' and "
        "'embedded:kokoro', voices of Piper and folders of Kokoro or CosyVoice."
    )


def _cosyvoice(spec: ModelSpec, report: Report) -> Loaded:
    check_version(Path(spec.path))
    try:
        from quintet_tts.backends import cosyvoice
    except ImportError as error:
        raise LoadError(
            f"{spec.path!r} needs the Python package {error.name!r}: {install.command('quintet-tts', 'cosyvoice')}"
        ) from None
    return cosyvoice.load(spec, report)


def _engine_of(spec: ModelSpec) -> str | None:
    """The engine's name; None when neither the spec nor the folder tells it."""
    if spec.embedded is not None:
        return _EMBEDDED.get(spec.embedded)
    if spec.engine != "auto":
        return spec.engine
    from quintet_tts.backends import kokoro, piper

    path = Path(spec.path)
    if recognised(path):
        return "cosyvoice"
    return "piper" if piper.find(path) else "kokoro" if kokoro.is_folder(path) else None
