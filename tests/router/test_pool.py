"""Connections to an upstream before anything is asked on them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from quintet_router.settings import Settings
from quintet_router.upstream.pool import Address, Pool


async def test_what_was_closed_before_it_could_be_used_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first write fails in uvloop, and the client gets a 500 instead of another replica's answer."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def late(*arguments: Any, **options: Any) -> Any:
        """As on a busy loop: the end has come before whoever waits for the connection runs again."""
        made = await connect(*arguments, **options)
        await asyncio.sleep(0.05)
        return made

    monkeypatch.setattr(loop, "create_connection", late)
    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        pool = Pool(Address("127.0.0.1", port, False, ""), Settings(), "127.0.0.1")
        with pytest.raises(ConnectionResetError):
            await pool.connect()
