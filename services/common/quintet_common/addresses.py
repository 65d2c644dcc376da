"""Which hosts a service may fetch from: the public internet, unless the operator allows more.

A request names a URL and the service fetches it, so without this check a client could read what only the service can
reach: other services, a cloud's metadata address, a router's web page. ``QUINTET_ALLOW_PRIVATE_URLS=1`` in the
environment of a service allows every address; set it where all clients are trusted. ``QUINTET_LOCAL=1``, which
``quintet serve`` sets while it listens on this machine alone, says that all clients are on this machine themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import os
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ALLOW_PRIVATE = "QUINTET_ALLOW_PRIVATE_URLS"
LOCAL = "QUINTET_LOCAL"

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """The host has no address that may be fetched from."""


def port_number(text: str) -> int:
    """A port, for argparse; 0 takes any free one."""
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def port_refused(error: OSError, port: int) -> str | None:
    """Why nothing can listen on ``port`` and what to do, for a person; None where it is not the port's fault."""
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is in use by another program; choose another with --port"
    if error.errno == errno.EACCES:
        return f"Port {port} needs administrator rights; choose one above 1023 with --port"
    return None


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, also when it wraps an IPv4 address."""
    inner = _wrapped(address) if isinstance(address, ipaddress.IPv6Address) else None
    if inner is not None:
        return is_public(inner)
    return address.is_global and not address.is_multicast


def is_loopback(host: str) -> bool:
    """Whether a server that listens on ``host`` can be reached from its own machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]


async def resolve(host: str, port: int, *, loopback: bool = False) -> str:
    """One address of ``host``, to connect to and to nothing else: a second look-up could give another answer.

    With ``loopback``, this machine's own addresses are allowed while Quintet is local to it. Raises AddressRefused when
    any of the host's addresses is not allowed, OSError when it has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    loopback = loopback and os.environ.get(LOCAL) == "1"
    if not all(_is_allowed(ipaddress.ip_address(address), loopback) for address in addresses):
        raise AddressRefused
    return addresses[0]


def _is_allowed(address: Address, loopback: bool) -> bool:
    return os.environ.get(ALLOW_PRIVATE) == "1" or is_public(address) or (loopback and address.is_loopback)
