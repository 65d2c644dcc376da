"""Inside the worker process: read the service's messages, hand them to the engine, send back what it emits."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import msgspec

from quintet_common import engine_args, folder, hub
from quintet_common.entries import ModelSpec
from quintet_common.errors import ApiError
from quintet_common.footprint import too_large
from quintet_common.worker import protocol

log = logging.getLogger("quintet.worker")
RequestT = TypeVar("RequestT")
RequestT_contra = TypeVar("RequestT_contra", contravariant=True)

CRASHED = 70
"""Exit status of a worker whose engine failed outside of any one request (EX_SOFTWARE)."""

STATS_SECONDS = 1.0


class LoadError(Exception):
    """The model cannot be loaded, and trying again will not help. The text is for a person."""


def settings(spec: ModelSpec, table: type[engine_args.TableT]) -> engine_args.TableT:
    """The ``engine_args`` of ``spec`` as ``table`` has them. Raises LoadError."""
    try:
        return engine_args.read(spec, table)
    except ValueError as error:
        raise LoadError(str(error)) from None


class Report(Protocol):
    def __call__(self, fraction: float, note: str) -> None:
        """Say how far loading is, from 0 to 1, and what is being done."""


class Emit:
    """The way back of one request, from any thread. Exactly one of ``done`` and ``fail`` reaches the service."""

    def __init__(self, host: Host[Any], request_id: int) -> None:
        self._host = host
        self._id = request_id
        self._open = True
        self._lock = threading.Lock()

    def __call__(self, event: Any) -> None:
        """Send one event; nothing once the request has ended."""
        if self._open:
            self._host.send(protocol.Event(self._id, protocol.encode_body(event)))

    def done(self) -> None:
        self._end(None)

    def fail(self, error: ApiError) -> None:
        self._end(protocol.RequestError.of(error))

    def _end(self, error: protocol.RequestError | None) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._host.forget(self._id)
        self._host.send(protocol.Done(self._id, error))


class Engine(Protocol[RequestT_contra]):
    """What a service writes for its kind of model: how requests are scheduled onto it.

    The host calls ``load`` on a thread of its own, then ``submit`` and ``cancel`` from one reader thread; neither may
    block for longer than it takes to queue. Each submitted request must end in ``emit.done()`` or ``emit.fail()``, the
    cancelled ones too, within a token or a step. An exception that escapes an engine thread ends the process.
    """

    @property
    def request_type(self) -> type[Any]:
        """The msgspec type that a Submit's body is decoded into."""

    def load(self, report: Report) -> dict[str, Any]:
        """Load the model and start the engine's threads; return what ``/v1/models`` should say of it."""

    def submit(self, request_id: int, request: RequestT_contra, emit: Emit) -> None: ...

    def cancel(self, request_id: int) -> None: ...

    def stats(self) -> dict[str, float]: ...


@runtime_checkable
class Holding(Protocol):
    """An engine that can let a request rest while its client does not read. Called as ``cancel`` is."""

    def hold(self, request_id: int, held: bool) -> None: ...


class Host(Generic[RequestT]):
    """Joins one engine to the service at the other end of ``sock``."""

    def __init__(self, sock: socket.socket, create: Callable[[ModelSpec], Engine[RequestT]]) -> None:
        self._sock = sock
        self._create = create
        self._write = threading.Lock()
        self._engine: Engine[RequestT] | None = None
        self._decode_request: Callable[[msgspec.Raw], RequestT] | None = None
        self._open: dict[int, Emit] = {}

    def run(self) -> None:
        """Serve until the service closes its end."""
        frames, decoder = protocol.Frames(), msgspec.msgpack.Decoder(protocol.ToWorker)
        while data := self._sock.recv(1 << 18):
            for payload in frames.feed(data):
                self._handle(decoder.decode(payload))

    def send(self, message: protocol.FromWorker) -> None:
        """Send a message whole; when the service is gone, so is this process."""
        data = protocol.frame(message)
        try:
            with self._write:
                self._sock.sendall(data)
        except OSError:
            os._exit(0)

    def forget(self, request_id: int) -> None:
        self._open.pop(request_id, None)

    def _handle(self, message: protocol.ToWorker) -> None:
        if isinstance(message, protocol.Load):
            spec = msgspec.convert(message.spec, ModelSpec)
            threading.Thread(target=self._load, args=(spec,), name="load", daemon=True).start()
        elif isinstance(message, protocol.Submit):
            self._submit(message)
        elif isinstance(message, protocol.Cancel):
            if self._engine is not None:
                self._engine.cancel(message.id)
        elif isinstance(self._engine, Holding):
            self._engine.hold(message.id, message.held)

    def _load(self, spec: ModelSpec) -> None:
        def report(fraction: float, note: str) -> None:
            self.send(protocol.Progress(fraction, note))

        report(0.0, "starting")
        try:
            if problem := folder.problem(spec) or too_large(spec):
                raise LoadError(problem)
            hub.check(spec)
            engine = self._create(spec)
            info = engine.load(report)
        except Exception as raised:
            error = hub.outage(spec, raised) or raised
            if not isinstance(error, (LoadError, hub.HubError, hub.NotOnHub)):
                log.exception("loading %s failed", spec.id)
            self.send(protocol.Failed(str(error) or type(error).__name__, not _may_pass(error, spec)))
            return
        self._decode_request = msgspec.msgpack.Decoder(engine.request_type).decode
        self._engine = engine
        self.send(protocol.Ready(info))
        threading.Thread(target=self._report_stats, name="stats", daemon=True).start()

    def _submit(self, message: protocol.Submit) -> None:
        emit = self._open[message.id] = Emit(self, message.id)
        if self._engine is None or self._decode_request is None:
            return emit.fail(ApiError(503, "The model is not loaded.", retry_after=1))
        try:
            self._engine.submit(message.id, self._decode_request(message.body), emit)
        except ApiError as error:
            emit.fail(error)
        except Exception:
            log.exception("request failed")
            emit.fail(ApiError(500, "The model failed on this request; the service's log has the details."))

    def _report_stats(self) -> None:
        last: dict[str, float] = {}
        pause = threading.Event()
        while not pause.wait(STATS_SECONDS):
            assert self._engine is not None
            values = self._engine.stats()
            if values != last:
                self.send(protocol.Stats(values))
                last = values


def _may_pass(error: Exception, spec: ModelSpec) -> bool:
    """Whether another start may go better: a hub may come back, and what others use of a device may be free then. A
    fault in the model's files, its settings or the code stays."""
    if isinstance(error, RuntimeError):  # torch says everything with it
        return not Path(spec.path).is_dir() or any(word in str(error) for word in ("memory", "CUDA"))
    return isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError)


def _crash(args: threading.ExceptHookArgs) -> None:
    """A dead engine thread would leave requests without a Done; a dead process is noticed and restarted."""
    log.critical("worker thread failed", exc_info=args.exc_value)
    os._exit(CRASHED)


def main(fd: int, factory: str) -> None:
    """Run the engine that ``factory`` (``package.module:function``) makes from a ModelSpec, over socket ``fd``."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to handle; it closes the socket
    threading.excepthook = _crash
    module, _, name = factory.partition(":")

    def create(spec: ModelSpec) -> Engine[Any]:
        engine: Engine[Any] = getattr(importlib.import_module(module), name)(spec)
        return engine

    Host(socket.socket(fileno=fd), create).run()
    os._exit(0)
