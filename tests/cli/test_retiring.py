"""What a reload leaves no use for: the old router, and a service without models. They have streams to end."""

from __future__ import annotations

import asyncio
import io
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from quintet.supervisor import supervisor
from quintet.supervisor.plan import KINDS
from quintet.supervisor.supervisor import Options, Supervisor
from quintet.terminal.screen import Screen
from quintet_common.models_yml import load_config


@pytest.fixture
def slow(house: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house whose router and vectors take longer to end than all of them get when all ends."""
    monkeypatch.setenv("PYTHONPATH", str(house / "standins"))
    monkeypatch.setenv("STANDIN_FOLDER", str(house))
    monkeypatch.setattr(supervisor, "GRACE", 0.1)
    for name in ("router", "embed"):
        (house / f"{name}.slow").write_text("1.5")
    return house


@asynccontextmanager
async def reloaded(house: Path, section: str) -> AsyncIterator[Callable[[], list[str]]]:
    """``quintet serve --reload`` after its service of vectors has lost its model: who has ended by itself."""
    file, out = house / "models.yml", io.StringIO()
    models = file.read_text()
    file.write_text(models + section)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        options = Options(file, "127.0.0.1", 0, True, KINDS, "info", house)
        served = Supervisor(options, load_config(file), listening, Screen(out))
        running = asyncio.create_task(served.run())
        await said(out, 1)
        file.write_text(models.rsplit("  - ", 1)[0] + section)
        await said(out, 2)
        ended = house / "ended"
        yield lambda: sorted(ended.read_text().split()) if ended.exists() else []
        served._stop.set()
        await asyncio.wait_for(running, 30)
    os.close(served._our_end)


async def said(out: io.StringIO, times: int) -> None:
    async with asyncio.timeout(60):
        while out.getvalue().count("Quintet is up") < times:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_they_have_the_grace_of_the_router_to_end_what_they_have_begun(slow: Path) -> None:
    async with reloaded(slow, "router: {grace: 30}\n") as ended:
        async with asyncio.timeout(30):
            while ended() != ["embed", "router"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_after_it_they_are_killed(slow: Path) -> None:
    async with reloaded(slow, "router: {grace: 0.2, drain_delay: 0.1}\n") as ended:
        await asyncio.sleep(2)
        assert ended() == []


async def test_nobody_waits_for_them_when_all_ends(slow: Path) -> None:
    for name in ("router", "embed"):
        (slow / f"{name}.slow").write_text("600")
    async with reloaded(slow, ""):
        pass
