"""The hub that models are fetched from: whether one can be had from it, and why not, in words for a person."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2

if TYPE_CHECKING:
    from quintet_common.entries import ModelSpec

_SECONDS = 15.0
"""The hub has so long to say whether it has a model."""


class HubError(OSError):
    """Why nothing can be had from the hub now; an OSError because that may pass."""


class NotOnHub(Exception):
    """The hub does not have, or does not give, what it was asked for."""


@contextmanager
def explained(name: str, revision: str | None = None) -> Iterator[None]:
    """What huggingface_hub says of the model ``name`` in here, as HubError or NotOnHub."""
    from huggingface_hub import errors as hub

    where = f"the hub {_host()}"
    try:
        yield
    except hub.GatedRepoError:
        raise NotOnHub(f"{where} gives {name} only to whom its owner lets; HF_TOKEN is the token for it.") from None
    except hub.RepositoryNotFoundError:
        raise NotOnHub(f"{where} has no model {name!r}, or hides it from who sends no HF_TOKEN.") from None
    except hub.RevisionNotFoundError:
        raise NotOnHub(f"{where} has {name}, but no {revision or 'main'!r} of it.") from None
    except hub.HFValidationError:
        raise NotOnHub(f"{name!r} is no name on a hub, as Qwen/Qwen2-7B-Instruct is one.") from None
    except hub.OfflineModeIsEnabled:
        raise HubError("no hub is asked while HF_HUB_OFFLINE is set.") from None
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        raise HubError(
            f"{where} cannot be reached: {reason}. HF_ENDPOINT=https://… names another or a mirror."
        ) from None


def check(spec: ModelSpec) -> None:
    """Raises HubError and NotOnHub for a model that is to be fetched and cannot be, before a library tries it for half
    a minute and then says so in its own words."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        return
    if not awaits(spec):
        return
    revision = spec.engine_args.get("revision")
    name, *others = _names(spec)
    try:
        with explained(spec.path, revision):
            HfApi().model_info(name, revision=revision, timeout=_SECONDS)
    except NotOnHub as error:
        if not others:
            raise NotOnHub(_in_full(spec, error)) from None
    except HubError as error:
        raise HubError(_in_full(spec, error)) from None
    except HfHubHTTPError:
        return  # a mirror may have the files alone; the library that wants them says what is wrong


def awaits(spec: ModelSpec) -> bool:
    """Whether the model is to be fetched when it is loaded. No hub is asked."""
    try:
        return _of_hub(spec) and not any(folder for name in _names(spec) for folder in _fetched(name))
    except ImportError:
        return False


def misnamed(spec: ModelSpec) -> str | None:
    """Why no hub can have what is neither here nor fetched; None where one may. No hub is asked."""
    if not awaits(spec):
        return None
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(spec.path)  # type: ignore[attr-defined]  # it is made on demand
    except errors.HFValidationError:
        return f"{spec.id}: {spec.path!r} is no folder here, and no name on a hub, as Qwen/Qwen2-7B-Instruct is one."
    return None


def source() -> str:
    """Where models are fetched from, for a person."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "no hub is asked while HF_HUB_OFFLINE is set."
    return f"fetched from {_host()} at start, or before by `quintet pull`; HF_ENDPOINT names another hub."


def _host() -> str:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT


def outage(spec: ModelSpec, error: BaseException | None) -> HubError | None:
    """The loss of the hub that ``error`` came of, while a model was fetched; None where there is none."""
    while error is not None and _of_hub(spec):
        if isinstance(error, httpx2.TransportError):
            try:
                with explained(spec.path):
                    raise error
            except HubError as told:
                return HubError(_in_full(spec, told))
        error = error.__cause__ or error.__context__
    return None


def _in_full(spec: ModelSpec, error: Exception) -> str:
    name = Path(spec.path).name
    pull = (
        f"; `quintet pull {spec.path} --into FOLDER` makes one where there is a network"
        if spec.path.count("/") == 1
        else ""
    )
    return (
        f"{spec.id}: {spec.path!r} is no folder here, and {error} A folder is named by its path, like ./{name}{pull}."
    )


def _of_hub(spec: ModelSpec) -> bool:
    elsewhere = spec.engine_args.get("url") is not None or bool(os.environ.get("VLLM_USE_MODELSCOPE"))
    if spec.kind == "tts" or spec.embedded is not None or elsewhere or spec.path.startswith(("/", "~", ".")):
        return False
    return not Path(spec.path).exists()


def _names(spec: ModelSpec) -> list[str]:
    """What it may be called on a hub: sentence-transformers finds its own models without their organisation."""
    short = spec.kind == "embedding" and "/" not in spec.path
    return [spec.path, f"sentence-transformers/{spec.path}"] if short else [spec.path]


def _fetched(name: str) -> Iterator[Path]:
    """The snapshots of a model in the caches."""
    from huggingface_hub import constants

    caches = [constants.HF_HUB_CACHE, os.environ.get("SENTENCE_TRANSFORMERS_HOME")]
    for cache in filter(None, caches):
        yield from Path(cache, f"models--{name.replace('/', '--')}", "snapshots").glob("*")
