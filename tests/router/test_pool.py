"""Connections to an upstream before anything is asked on them."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import pytest
import uvloop
from quintet_router.settings import Settings
from quintet_router.upstream.pool import Address, Pool


def _reset_all(listening: socket.socket) -> None:
    """Accept and reset, until the socket is closed."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def test_what_is_closed_as_soon_as_it_is_open_is_never_handed_out() -> None:
    """Else the first write on it fails in uvloop, and the client gets 500 instead of another replica."""
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_reset_all, args=(listening,))
    thread.start()

    async def connect() -> int:
        pool = Pool(Address("127.0.0.1", listening.getsockname()[1], False, ""), Settings(), "127.0.0.1")
        refused = 0
        for _ in range(200):
            try:
                connection = await pool.connect()
            except OSError:
                refused += 1
                continue
            assert not connection.closing
            connection.abort()
            await asyncio.sleep(0)
        return refused

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        refused = runner.run(connect())
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)
    if not refused:
        pytest.skip("this machine was never so quick to reset")
