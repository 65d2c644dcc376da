"""Fetch a file that a request names by its URL, within limits of size, time, kind and place."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

import httpx2

from quintet_common.addresses import ALLOW_PRIVATE, AddressRefused, resolve
from quintet_common.errors import ApiError, bad_request

SECONDS = 15.0
"""For one file, redirects included."""

MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Limits:
    """What may be fetched: so many bytes, of a content type that begins with ``kind``, such as ``image/``.

    ``loopback`` is as for ``addresses.resolve``.
    """

    max_bytes: int
    kind: str
    loopback: bool = False


async def fetch(url: str, limits: Limits, param: str) -> bytes:
    """The body at an http or https ``url``.

    Raises ApiError 400 that names ``param`` for everything that can go wrong.
    """
    try:
        async with asyncio.timeout(SECONDS), _client() as client:
            for _ in range(MAX_REDIRECTS + 1):
                body, location = await _get(client, url, limits, param)
                if location is None:
                    return body
                url = urljoin(url, location)
                limits = replace(limits, loopback=False)  # only the client itself may point at this machine
    except AddressRefused:
        message = f"{param}: the address of this URL is not public. The operator can allow it with {ALLOW_PRIVATE}=1."
        raise bad_request(message, param, "url_not_allowed") from None
    except TimeoutError:
        raise _failed(f"the URL did not answer within {SECONDS:.0f} s", param) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError, ValueError):
        raise _failed("the URL could not be fetched", param) from None
    raise _failed(f"the URL redirects more than {MAX_REDIRECTS} times", param)


def _client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=SECONDS)


async def _get(client: httpx2.AsyncClient, url: str, limits: Limits, param: str) -> tuple[bytes, str | None]:
    """The body, or the place that the answer redirects to.

    The connection goes to the address that was checked; the name stays in the Host header and in the TLS handshake, so
    that certificates are verified against it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _failed("only http and https URLs are fetched", param)
    host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = await resolve(host, port, loopback=limits.loopback)
    pinned = httpx2.URL(url).copy_with(host=address, userinfo=b"")
    name = f"[{host}]" if ":" in host else host
    request = client.build_request(
        "GET",
        pinned,
        headers={
            "host": name if parts.port is None else f"{name}:{port}",
            "accept": f"{limits.kind}*",
            "accept-encoding": "identity",
        },
        extensions={"sni_hostname": host},
    )
    response = await client.send(request, stream=True)
    try:
        if response.status_code in _REDIRECTS and "location" in response.headers:
            return b"", response.headers["location"]
        if response.status_code != 200:
            raise _failed(f"the URL answered with status {response.status_code}", param)
        content_type = response.headers.get("content-type", "application/octet-stream").lower()
        if not content_type.startswith((limits.kind, "application/octet-stream", "binary/octet-stream")):
            raise _failed(f"the URL gives {content_type[:60]!r}, not {limits.kind}*", param)
        return await _read(response, limits.max_bytes, param), None
    finally:
        await response.aclose()


async def _read(response: httpx2.Response, max_bytes: int, param: str) -> bytes:
    body = bytearray()
    async for piece in response.aiter_raw(1 << 16):
        body += piece
        if len(body) > max_bytes:
            raise bad_request(f"{param}: the file is larger than {max_bytes >> 20} MiB.", param, "file_too_large")
    return bytes(body)


def _failed(reason: str, param: str) -> ApiError:
    return bad_request(f"{param}: {reason}.", param, "invalid_url")
