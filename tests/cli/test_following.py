"""What ``quintet serve`` knows of its models when models.yml changes while it asks for them."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from quintet.supervisor import supervisor, watch
from quintet.supervisor.child import Child
from quintet.supervisor.logs import ServiceLog
from quintet.supervisor.plan import SERVICES
from quintet.supervisor.states import ModelState, UpstreamState
from quintet.supervisor.supervisor import Options, Supervisor
from quintet.terminal.screen import Screen
from quintet_common.models_yml import Config, ModelSpec

CHAT = ModelSpec(id="talk", kind="chat", path="embedded:x")
ALL = frozenset({"chat"})


class Following:
    """A supervisor whose services are answered for by ``states``, and what it has said."""

    def __init__(self, folder: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = io.StringIO()
        options = Options(folder / "models.yml", "127.0.0.1", 0, True, ALL, "info", folder)
        self.supervisor = Supervisor(options, Config(models=[CHAT]), listening, Screen(self.out))
        self.states = [ModelState("talk", "chat", state="ready")]
        self.asked, self.answer = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(supervisor, "fetch", self._fetch)
        monkeypatch.setattr(supervisor, "fetch_upstreams", self._fetch_upstreams)

    async def _fetch(self, _: str) -> list[ModelState]:
        states = self.states
        self.asked.set()
        await self.answer.wait()
        return states

    async def _fetch_upstreams(self, _: str) -> list[UpstreamState]:
        return []

    def change(self) -> None:
        """What a changed models.yml does to what is known; no process runs here."""
        self.supervisor._config = Config(models=[CHAT])
        self.supervisor._loading, self.supervisor._states = True, {}


class Asked:
    """In place of a service that runs."""

    url = "http://127.0.0.1:1"
    service = SERVICES[0]
    quick_deaths = 0
    pid = 1

    @property
    def child(self) -> Asked:
        return self

    def mark_answered(self, pid: int | None) -> None: ...


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Following(tmp_path, listening, monkeypatch)
        made.supervisor._services["chat"] = Asked()  # type: ignore[assignment]
        yield made


async def test_answers_from_before_the_change_count_for_nothing(following: Following) -> None:
    looking = asyncio.create_task(following.supervisor._look())
    await following.asked.wait()
    following.change()
    following.answer.set()
    await looking
    assert following.supervisor._state(CHAT).state == "loading"
    await following.supervisor._look()
    assert following.supervisor._state(CHAT).state == "ready"


async def test_a_process_that_has_come_meanwhile_has_not_answered(tmp_path: Path) -> None:
    """It could not take the signal to reload yet, and would die of it."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = Child("chat", command, [], ServiceLog("chat", tmp_path, "info", lambda *_: None), lambda *_: None)
    child.start()
    async with asyncio.timeout(60):
        while (first := child.pid) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        child.reload()
        os.kill(first, signal.SIGKILL)
        while child.pid in (first, None):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    second = child.pid
    child.mark_answered(first)
    await asyncio.sleep(0.2)
    assert child.pid == second
    await child.stop(5)


async def test_nothing_is_up_when_models_yml_changes_just_before_it_is_said(following: Following) -> None:
    following.supervisor._states = {"talk": following.states[0]}
    following.supervisor._router = Asked()  # type: ignore[assignment]
    welcoming = asyncio.create_task(following.supervisor._welcome())
    await following.asked.wait()
    following.change()
    following.answer.set()
    await welcoming
    assert following.supervisor._loading
    assert "Quintet is up" not in following.out.getvalue()


async def test_a_file_that_is_being_written_is_read_when_it_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = ["old", "old", "half", "whole", "whole", "whole", None, "next", "next"]
    seen: list[str | None] = []

    def look(_: Path) -> str | None:
        seen.append(looks[len(seen)])
        return seen[-1]

    monkeypatch.setattr(watch, "stamp", look)
    monkeypatch.setattr(watch, "INTERVAL", 0)
    changes = watch.changes(Path("models.yml"))
    await anext(changes)
    assert seen == looks[:5]
    await anext(changes)
    assert seen == looks
