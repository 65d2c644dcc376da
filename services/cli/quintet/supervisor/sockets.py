"""Listening sockets. The supervisor binds them and keeps them, so a restarted service has the same address."""

from __future__ import annotations

import errno
import socket

from quintet_common.addresses import port_refused

LOOPBACK = "127.0.0.1"

BACKLOG = 2048
"""Connections that wait in the kernel while a service is restarted."""


class ListenError(Exception):
    """The address cannot be listened on. The text is one line for a person."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; ``port`` 0 takes any free one. Raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ListenError(_reason(error, host, port)) from None


def listen_near(port: int, offset: int) -> socket.socket:
    """A socket on loopback at ``port + offset``, where Prometheus finds it again; at a free port if that is taken."""
    try:
        return listen(LOOPBACK, port + offset)
    except (ListenError, OverflowError):
        return listen(LOOPBACK, 0)


def port_of(listening: socket.socket) -> int:
    port = listening.getsockname()[1]
    assert isinstance(port, int)
    return port


def _reason(error: OSError, host: str, port: int) -> str:
    if text := port_refused(error, port):
        other = f" (make up PORT={_free_port_after(host, port)})" if error.errno == errno.EADDRINUSE else ""
        return f"{text}{other}."
    if (error.errno or 0) < 0 or error.errno == errno.EADDRNOTAVAIL:  # below 0: the name has no address
        return f"{host!r} is not an address of this machine; use --host 127.0.0.1 or 0.0.0.0."
    return f"Cannot listen on {host}:{port}: {error.strerror}."


def _free_port_after(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port + 1, min(port + 50, 65536)):
        try:
            socket.create_server((host, candidate), family=family).close()
        except OSError:
            continue
        return candidate
    return port + 1
