"""Talking to a running endpoint, for the commands that do."""

from __future__ import annotations

import argparse
import os
from urllib.parse import urlsplit

import msgspec
import openai

DEFAULT_URL = "http://127.0.0.1:8000"

NO_KEY = "none"
"""What the SDK sends without a key: it insists on sending one."""


class ClientError(Exception):
    """The endpoint did not do what was asked. The text is one line for a person."""


class Card(msgspec.Struct, frozen=True):
    """One model of the endpoint's list, as far as the commands need it."""

    id: str
    kind: str = ""
    aliases: list[str] = []
    engine: str = ""
    state: str = ""
    progress: float = 1.0
    note: str = ""


def add_url(parser: argparse.ArgumentParser) -> None:
    """The option that names the endpoint."""
    parser.add_argument(
        "--url",
        type=url,
        default=os.environ.get("QUINTET_URL", DEFAULT_URL),
        help=f"the endpoint (default: $QUINTET_URL, else {DEFAULT_URL})",
    )


def connect(url: str) -> openai.OpenAI:
    """A client of the endpoint at ``url``, with or without ``http://`` and ``/v1``; ``OPENAI_API_KEY`` is sent if it is
    set."""
    base = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1") + "/v1"
    host = urlsplit(base).hostname or ""
    # A proxy of the environment is for the internet, never for this machine.
    local = host in ("localhost", "::1") or host.startswith("127.")
    http = openai.DefaultHttpxClient(trust_env=not local)
    key = os.environ.get("OPENAI_API_KEY") or NO_KEY
    return openai.OpenAI(base_url=base, api_key=key, http_client=http, max_retries=1)


def url(text: str) -> str:
    """The address of an endpoint, for argparse."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.hostname and parts.port != 0:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not an address like {DEFAULT_URL}")


def cards(client: openai.OpenAI) -> list[Card]:
    """The models of the endpoint. Raises ClientError where it wants a key and there is none."""
    try:
        found = [model.model_dump() for model in client.models.list()]
    except openai.AuthenticationError:
        if client.api_key != NO_KEY:
            raise
        raise ClientError("The endpoint asks for an API key: set OPENAI_API_KEY to one.") from None
    return msgspec.convert(found, list[Card])


class _Health(msgspec.Struct):
    upstreams: dict[str, str] = {}


def troubles(client: openai.OpenAI) -> dict[str, str]:
    """The upstreams of the endpoint that cannot be used, and why; none where it does not tell them."""
    try:
        health = client.get(str(client.base_url).removesuffix("/v1/") + "/health", cast_to=object)
        return msgspec.convert(health, _Health).upstreams
    except (openai.OpenAIError, msgspec.ValidationError):
        return {}


def explain(error: openai.OpenAIError, url: str) -> ClientError:
    """An error of the SDK as a line for a person."""
    if isinstance(error, openai.APIConnectionError):
        return ClientError(
            f"Nothing answers at {url}. Is `quintet serve` running? Another place: --url or QUINTET_URL."
        )
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        return ClientError(str(body.get("message") or error.message))
    return ClientError(str(error))
