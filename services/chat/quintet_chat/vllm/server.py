"""vLLM's server as a child process: its command line, how far it is with loading, and why it ended."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from quintet_common import vllm_program
from quintet_common.engine_args import Vllm
from quintet_common.models_yml import ModelSpec
from quintet_common.sizes import parse_bytes
from quintet_common.worker.host import LoadError

from quintet_chat.vllm import facts, originals

log = logging.getLogger("quintet.vllm")
NOT_FLAGS = frozenset(Vllm.__struct_fields__) | {"reasoning_parser"}
"""``engine_args`` that are not handed on to vLLM. Its own parser would take thoughts out of the text, where we look for
them."""

_SHARDS = re.compile(r"(\d+)% Completed")
_STAGES = (
    ("Starting to load model", 0.2, "loading the weights"),
    ("Loading weights took", 0.7, "preparing"),
    ("GPU KV cache size", 0.8, "making room for keys and values"),
    ("Capturing CUDA graph", 0.85, "capturing CUDA graphs"),
    ("Graph capturing finished", 0.95, "starting the server"),
)
"""What vLLM's log says, and how far it then is."""

_ERROR = re.compile(r"\b(?:\w*Error|\w*Exception)\b: (?P<what>.+)")
_PREFIX = re.compile(r"^\(\w+ pid=\d+\)\s*")
Progress = Callable[[float, str], None]


class Server:
    """One run of it. ``ended`` is called when it stops, with a line for a person that says why."""

    def __init__(self, spec: ModelSpec, progress: Progress, ended: Callable[[str], None]) -> None:
        self._progress = progress
        self._ended = ended
        self._errors: deque[str] = deque(maxlen=50)
        self._last = ""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.key = secrets.token_urlsafe(24)
        self._command = [*command(spec), "--host", "127.0.0.1", "--port", str(port)]
        given = spec.engine_args.get("env") or {}
        self._environment = os.environ | {str(name): str(value) for name, value in given.items()}
        self._environment |= {"VLLM_API_KEY": self.key} | _devices(spec)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Raises LoadError when there is no such program."""
        if shutil.which(self._command[0]) is None:
            raise LoadError(f"vLLM cannot be started: there is no program {self._command[0]!r}.")
        # The leash is tied to this thread, so it stays with the process.
        threading.Thread(target=self._run, name="vllm", daemon=True).start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def _run(self) -> None:
        leash = [sys.executable, "-m", "quintet_chat.vllm.leash", str(os.getpid())]
        self._process = subprocess.Popen(
            [*leash, *self._command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        for line in _lines(self._process.stdout):
            self._read(_PREFIX.sub("", line))
        self._ended(self._reason(self._process.wait()))

    def _read(self, line: str) -> None:
        log.info("%s", line)
        self._last = line
        if found := _ERROR.search(line):
            self._errors.append(found[0])
        if shards := _SHARDS.search(line):
            self._progress(0.2 + int(shards[1]) / 200, "loading the weights")
        for mark, fraction, note in _STAGES:
            if mark in line:
                self._progress(fraction, note)

    def _reason(self, status: int) -> str:
        """The first error that is not only a report of one before it."""
        told = [error for error in self._errors if "initialization failed" not in error]
        return told[-1] if told else self._last or f"it ended with status {status}"


def command(spec: ModelSpec) -> list[str]:
    """What starts vLLM for ``spec``, all but its address. Raises LoadError where vLLM is not to be found."""
    prepared = originals.prepare(spec, facts.config_of(spec))
    program = vllm_program.find(prepared.path)
    if program is None:
        raise LoadError(vllm_program.ABSENT)
    words = [*program, "--served-model-name", spec.id]
    flags: dict[str, Any] = {}
    if spec.context is not None:
        flags["max_model_len"] = spec.context
    if spec.max_batch is not None:
        flags["max_num_seqs"] = spec.max_batch
    if spec.dtype != "auto":
        flags["dtype"] = spec.dtype
    flags |= prepared.flags | _sizes(spec)
    given = {name.removeprefix("--").replace("-", "_"): value for name, value in spec.engine_args.items()}
    flags |= {name: value for name, value in given.items() if name not in NOT_FLAGS}
    for name, value in flags.items():
        words += _flag(name.replace("_", "-"), value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


def _gpus(spec: ModelSpec) -> list[int]:
    """The GPUs that ``memory`` names."""
    return sorted(device for device in spec.memory if isinstance(device, int))


def _devices(spec: ModelSpec) -> dict[str, str]:
    gpus = _gpus(spec)
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus and _has_gpu() else {}


def _has_gpu() -> bool:
    """Without one, what GPUs may hold is of no account: vLLM runs on the CPU then."""
    return any(Path("/dev", name).exists() for name in ("nvidiactl", "dxg", "kfd"))


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    """``memory`` in vLLM's terms: a share of every GPU, and one rank on each."""
    gpus = _gpus(spec)
    if not gpus or not _has_gpu():
        return {}
    import torch  # not needed otherwise, and large

    try:
        totals = {gpu: torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus}
    except (AssertionError, RuntimeError) as error:
        raise LoadError(f"{spec.id}: memory names GPU {gpus[0]}, which is not there: {error}") from None
    share = min(parse_bytes(spec.memory[gpu]) / total for gpu, total in totals.items())
    return {"gpu_memory_utilization": round(min(share, 0.98), 3), "tensor_parallel_size": len(gpus)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come; progress bars end theirs with a carriage return."""
    rest = b""
    while data := os.read(stream.fileno(), 1 << 16):
        *whole, rest = re.split(rb"[\r\n]+", rest + data)
        yield from (line.decode(errors="replace").rstrip() for line in whole if line.strip())
    if rest.strip():
        yield rest.decode(errors="replace").rstrip()
