"""The parent of all processes: start them, follow their models, apply a changed models.yml, stop them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quintet_common.addresses import LOCAL, is_loopback
from quintet_common.entries import DRAIN_SECONDS
from quintet_common.models_yml import Config, ConfigError, ModelSpec

from quintet.checks import load_changed
from quintet.supervisor import welcome
from quintet.supervisor.child import Child
from quintet.supervisor.logs import ServiceLog, default_log_folder, keep_last_run
from quintet.supervisor.plan import KINDS, ROUTER_MODULE, SERVICES, Service, needed_services
from quintet.supervisor.sockets import listen_near, port_of
from quintet.supervisor.states import SETTLED, KeyNeeded, ModelState, fetch, fetch_states, fetch_upstreams
from quintet.supervisor.watch import changes
from quintet.terminal.screen import Progress, Screen

GRACE = 6.0
"""Seconds that requests in flight have when all ends; and that a process has to leave by itself once its own grace is
over."""

HURRY, ROUTER_HURRY, HURRIED = 0.8, 1.2, 2.0
"""Seconds after Ctrl-C, when somebody looks on: until services break off what they have begun; until the router does,
which tells clients of it in between; and until what is left is killed."""

FAST, SLOW = 0.2, 2.0
"""Seconds between two looks at the models' states: while they load, and afterwards."""

HOPELESS = 3
"""After so many quick deaths the others are not made to wait for a service any longer. It is still started again."""

ROUTER_LAG = 15.0
"""Seconds that the router may take to notice that a model is ready."""


@dataclass(frozen=True)
class Options:
    """What ``quintet serve`` was asked to do."""

    config: Path
    host: str
    port: int
    reload: bool
    kinds: frozenset[str]
    log_level: str
    logs: Path | None


class _Running:
    """A service with its socket."""

    def __init__(self, service: Service, listening: socket.socket, child: Child) -> None:
        self.service = service
        self.socket = listening
        self.child = child
        self.port = port_of(listening)
        self.url = f"http://127.0.0.1:{self.port}"


class Supervisor:
    """``listening`` is the router's socket, bound by the caller so that a busy port is said before anything starts."""

    def __init__(self, options: Options, config: Config, listening: socket.socket, screen: Screen) -> None:
        self._options = options
        self._config = config
        self._socket = listening
        self._screen = screen
        self._port = port_of(listening)
        self._services: dict[str, _Running] = {}
        self._router: Child | None = None
        self._retired: dict[asyncio.Task[None], Child] = {}
        self._states: dict[str, ModelState] = {}
        self._loading = True
        self._hurried = False
        self._stop = asyncio.Event()
        self._lifeline, self._our_end = os.pipe()
        self._logs = self._make_log_folder()
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(options.host, options.host)
        self._url = f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{self._port}"

    async def run(self) -> None:
        """Serve until SIGINT, SIGTERM or SIGHUP. A second SIGINT ends everything at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup: the terminal may go, we stay
                loop.add_signal_handler(number, self._on_signal, number)
        for service in needed_services(self._config, self._options.kinds):
            self._start_service(service)
        self._start_router()
        tasks = [asyncio.create_task(self._follow_models())]
        if self._options.reload:
            tasks.append(asyncio.create_task(self._follow_config()))
        try:
            await self._until_stopped(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await self._stop_all()

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for task in done:
            task.result()  # an error of our own must not be swallowed

    def _on_signal(self, number: signal.Signals) -> None:
        self._hurried = number is signal.SIGINT
        if self._stop.is_set():
            for child in self._children():
                child.kill()
        self._stop.set()

    # Processes

    def _start_service(self, service: Service) -> None:
        listening = listen_near(self._port, 1 + SERVICES.index(service))
        only = [f"--only={kind}" for kind in sorted(service.kinds & self._options.kinds)]
        partly = only if service.kinds - self._options.kinds else []
        # Its requests come through the router, whose time to end them would be worth nothing without its own.
        grace = self._config.router.grace
        same = [] if grace is None else [f"--grace={grace:g}"]
        child = self._child(service.name, service.module, listening, [str(self._options.config), *partly, *same])
        self._services[service.name] = _Running(service, listening, child)
        child.start()

    def _start_router(self) -> None:
        upstreams = [argument for running in self._services.values() for argument in ("--upstream", running.url)]
        config = ["--config", str(self._options.config)]
        left_out = KINDS - self._options.kinds
        only = [f"--only={kind}" for kind in sorted(self._options.kinds)] if left_out else []
        self._router = self._child("router", ROUTER_MODULE, self._socket, [*upstreams, *config, *only])
        self._router.start()

    def _child(self, name: str, module: str, listening: socket.socket, arguments: list[str]) -> Child:
        # -P: a file named like a module in the current folder is no part of the service.
        fds = (listening.fileno(), self._lifeline)
        inherited = ["--fd", str(fds[0]), "--lifeline", str(fds[1]), "--log-level", "info"]
        if self._options.log_level == "debug":
            inherited[-1] = "debug"
        command = [sys.executable, "-P", "-m", module, *arguments, *inherited]
        log = ServiceLog(name, self._logs, self._options.log_level, self._screen.say)
        local = {LOCAL: "1"} if is_loopback(self._options.host) else {}
        # What it was started with counts: it reads the section router only once.
        delay, grace = self._config.router.drain_delay or 0.0, self._config.router.grace
        leaves = delay + (DRAIN_SECONDS if grace is None else grace) + GRACE
        return Child(name, command, fds, log, self._screen.say, local, leaves)

    def _children(self) -> list[Child]:
        router = [self._router] if self._router is not None else []
        return [*router, *(running.child for running in self._services.values()), *self._retired.values()]

    async def _stop_all(self) -> None:
        self._screen.end_progress()
        self._screen.say("", "Stopping (once more to stop at once) …")
        await asyncio.gather(*(self._end(child) for child in self._children()), *self._retired)
        self._screen.say("Stopped.")

    async def _end(self, child: Child) -> None:
        if self._hurried:
            await child.stop(HURRIED, ROUTER_HURRY if child.name == "router" else HURRY)
        else:
            await child.stop(GRACE)

    def _make_log_folder(self) -> Path | None:
        folder = self._options.logs or default_log_folder(self._port)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._screen.say(f"No logs are kept: {folder}: {error.strerror}.")
            return None
        keep_last_run(folder, ["router", *(service.name for service in SERVICES)])
        return folder

    # Models

    def _wanted(self) -> list[ModelSpec]:
        return self._config.of_kinds(set(self._options.kinds))

    async def _follow_models(self) -> None:
        while True:
            config = self._config
            if self._loading:
                await self._look()
                self._screen.progress([self._progress(spec) for spec in self._wanted()])
                settled = all(self._state(spec).state in SETTLED for spec in self._wanted())
                if settled and await self._router_answers() and config is self._config:
                    await self._welcome()
            elif await self._changed():
                await self._look()
            await asyncio.sleep(FAST if self._loading else SLOW)

    async def _changed(self) -> bool:
        """Whether a model is in another state than it was."""
        running = [(each, each.child.pid) for each in self._services.values()]
        answers = await asyncio.gather(*(fetch_states(each.url) for each, _ in running))
        for (each, pid), answer in zip(running, answers, strict=True):
            if answer is not None:
                each.child.mark_answered(pid)
        now = {name: state for answer in answers if answer is not None for name, state in answer.items()}
        return any(name in now and now[name] != known.state for name, known in self._states.items())

    async def _look(self) -> None:
        """Ask every service for its models, and say what changed since all was up."""
        running, config = [(each, each.child.pid) for each in self._services.values()], self._config
        answers = await asyncio.gather(*(fetch(each.url) for each, _ in running))
        if config is not self._config:
            return  # these are answers from before
        states: dict[str, ModelState] = {}
        for (each, pid), answer in zip(running, answers, strict=True):
            if answer is not None:
                each.child.mark_answered(pid)
                states |= {state.id: state for state in answer}
        for spec in self._wanted():
            before, now = self._states.get(spec.id), states.get(spec.id)
            if not self._loading and before and now and before.state != now.state:
                self._screen.say(f"{spec.id} is {now.state}" + (f": {now.reason}" if now.note else ""))
        self._states = {**self._states, **states} if not self._loading else states

    def _state(self, spec: ModelSpec) -> ModelState:
        """The model's state; failed while its service cannot be started."""
        if spec.id in self._states:
            return self._states[spec.id]
        child = next((each.child for each in self._services.values() if spec.kind in each.service.kinds), None)
        if child is not None and child.quick_deaths >= HOPELESS:
            return ModelState(spec.id, spec.kind, spec.engine, "failed", 0, f"the service ends: {child.last_line}")
        return ModelState(spec.id, spec.kind, spec.engine, "loading", 0, "the service starts")

    def _progress(self, spec: ModelSpec) -> Progress:
        state = self._state(spec)
        return Progress(spec.id, state.state, state.progress, state.reason)

    async def _welcome(self) -> None:
        states = [self._state(spec) for spec in self._wanted()]
        ready, config = {state.id for state in states if state.state in ("ready", "idle")}, self._config
        lag = await self._router_lag(ready)
        own = {running.url for running in self._services.values()}
        others = [each for each in await fetch_upstreams(self._url) if each.url not in own]
        if config is not self._config:
            return  # it has changed meanwhile, and its models load
        self._loading = False
        ports = {name: running.port for name, running in self._services.items()}
        self._screen.end_progress()
        locked = self._config.router.keys is not None
        self._screen.say(*welcome.lines(self._url, states, ports, self._logs, locked, self._screen.columns, others))
        if lag:
            self._screen.say(lag)

    async def _router_answers(self) -> bool:
        """Whether the router is there; until then nothing is up."""
        assert self._router is not None
        router, pid = self._router, self._router.pid
        try:
            if await fetch(self._url) is None:
                return False
        except KeyNeeded:
            pass
        router.mark_answered(pid)
        return True

    async def _router_lag(self, ready: set[str]) -> str | None:
        """Wait until the router serves all that is ready. What it still lacks in the end, as a line."""
        deadline = asyncio.get_running_loop().time() + ROUTER_LAG
        missing = ready
        while asyncio.get_running_loop().time() < deadline:
            assert self._router is not None
            router, pid = self._router, self._router.pid
            try:
                answer = await fetch(self._url)
            except KeyNeeded:
                return None
            if answer is not None:
                router.mark_answered(pid)
                missing = ready - {state.id for state in answer if state.state != "loading"}
                if not missing:
                    return None
            await asyncio.sleep(FAST)
        return f"The router does not serve yet: {', '.join(sorted(missing))}."

    # models.yml

    async def _follow_config(self) -> None:
        async for _ in changes(self._options.config):
            try:
                config = await asyncio.to_thread(load_changed, self._options.config, self._config)
            except (ConfigError, OSError) as error:  # folders may go while they are looked at
                self._screen.say(f"Not reloaded, what runs goes on: {error}")
            else:
                await self._apply(config)

    async def _apply(self, config: Config) -> None:
        """Make what runs that of ``config``: services read the file themselves; new ones start, needless ones end."""
        self._config = config
        self._loading, self._states = True, {}
        self._screen.say(f"{self._options.config.name} has changed, reloading.")
        needed = needed_services(config, self._options.kinds)
        gone = [name for name in self._services if name not in {service.name for service in needed}]
        new = [service for service in needed if service.name not in self._services]
        for running in self._services.values():
            running.child.reload()
        for name in gone:
            running = self._services.pop(name)
            self._retire(running.child, running.socket.close)
        for service in new:
            self._start_service(service)
        assert self._router is not None
        if gone or new:
            # The upstreams are arguments of the router. The old one ends what it has begun; new connections wait in
            # the socket, which is ours, until the new one takes them.
            self._retire(self._router)
            self._start_router()
        else:
            self._router.reload()

    def _retire(self, child: Child, then: Callable[[], None] = lambda: None) -> None:
        """End a process for which there is no use any more, while the others go on: it ends what it has begun."""

        async def retire() -> None:
            await child.stop(child.leaves)
            then()

        task = asyncio.create_task(retire())
        self._retired[task] = child
        task.add_done_callback(self._retired.pop)
