"""One service process, kept alive: started, restarted with back-off when it dies, stopped with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from quintet.supervisor.logs import ServiceLog

FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0
"""Seconds before a dead service is started again: doubled at every quick death, up to the last."""

STEADY_SECONDS = 20.0
"""A service that lived this long starts over with the first back-off."""

SWEEP_SECONDS = 1.0
"""How long the output of a dead service is read for, once nothing of it can be alive."""


class Child:
    """A process and its successors. ``fds`` stay open in it; ``say`` gets one line when it dies.

    ``leaves``: within so many seconds after SIGTERM it ends by itself, if nothing is wrong with it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        fds: Sequence[int],
        log: ServiceLog,
        say: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        leaves: float = 0.0,
    ) -> None:
        self.name = name
        self.leaves = leaves
        self.quick_deaths = 0
        self._command = command
        self._fds = fds
        self._environment = environment or {}
        self._log = log
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._end = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reload_waits = False
        self._answered = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def last_line(self) -> str:
        """The last line that it wrote, which says most about why it does not start."""
        return self._log.last_line

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"service {self.name}")

    def mark_answered(self, pid: int | None) -> None:
        """The service has answered a request, so its signal handlers are in place. ``pid`` is what it was when it was
        asked: a process that has come in its place since has answered nothing."""
        if pid != self.pid:
            return
        self._answered = True
        self.quick_deaths = 0
        if self._reload_waits:
            self._reload_waits = False
            self._signal(signal.SIGHUP)

    def reload(self) -> None:
        """Let the service read models.yml again, as soon as it can take the signal."""
        if self._answered:
            self._signal(signal.SIGHUP)
        else:
            self._reload_waits = True

    async def stop(self, grace: float, patience: float | None = None) -> None:
        """SIGTERM, then SIGKILL after ``grace`` seconds; returns when nothing of it is left.

        After ``patience`` seconds, SIGINT: what a server of ours has begun it then breaks off.
        """
        self._end.set()
        self._signal(signal.SIGTERM)
        if self._task is not None:
            if patience is not None:
                await asyncio.wait([self._task], timeout=patience)
                self._signal(signal.SIGINT)
            _, late = await asyncio.wait([self._task], timeout=grace - (patience or 0))
            if late:
                self.kill()
                await asyncio.wait([self._task])
        self._log.close()

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        self._end.set()
        if self._process is not None:
            _kill_group(self._process.pid)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._end.is_set():
            started = time.monotonic()
            code = await self._live()
            if self._end.is_set():
                return
            steady = time.monotonic() - started >= STEADY_SECONDS
            backoff = FIRST_BACKOFF if steady else backoff
            self.quick_deaths = 0 if steady else self.quick_deaths + 1
            # What it wrote last says why it does not start, unless the terminal has that line already.
            why = "" if self._answered or self._log.last_was_said or not self.last_line else f": {self.last_line}"
            self._say(f"{self.name} ended ({_how(code)}){why}; starting it again in {backoff:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)

    async def _live(self) -> int:
        """One life of the process. Returns its exit code, negative for a signal."""
        self._answered = False
        # A pipe of our own: asyncio's would make wait() wait for everyone who holds its other end, model processes too.
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                pass_fds=self._fds,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops all in order.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
            )
        finally:
            os.close(write_end)
        self._process = process
        if self._end.is_set():
            process.terminate()
        reading = asyncio.create_task(self._log.follow(read_end))
        try:
            return await process.wait()
        finally:
            self._process = None
            _kill_group(process.pid)  # model processes that outlived their service
            await asyncio.wait([reading], timeout=SWEEP_SECONDS)
            reading.cancel()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
