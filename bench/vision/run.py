"""What the image service costs beside the bare pipeline, and what drawing four pictures together saves.

    python bench/vision/run.py [--rounds 5] [--write]

Each figure is CPU time on one thread: that of the service's whole process tree, from the request to the answer, against
that of a process which calls the diffusers pipeline and writes the same PNG. Both run at once and take turns, so that
what else the machine does falls on both. Prompts are new each time: nothing comes from the cache of prompts.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx2
from PIL import Image

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
sys.path += [str(HERE.parent), str(TOP / "tests" / "vision")]
from processes import cpu_seconds, free_port, serving  # noqa: E402
from tiny_kolors import kolors  # noqa: E402

DOCS, BEGIN, END = TOP / "docs" / "benchmarks.md", "<!-- images: begin -->\n", "<!-- images: end -->"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "QUINTET_THREADS": "1", "HF_HUB_OFFLINE": "1"}
CONFIG = """models:
  - {{id: emoji-64, kind: image, path: 'embedded:emoji-64', dtype: float32}}
  - {{id: kolors, kind: image, path: {folder}, dtype: float32}}
  - {{id: emoji-64-auto, kind: image, path: 'embedded:emoji-64'}}
  - {{id: kolors-auto, kind: image, path: {folder}}}
"""
PICTURES = 8
"""Per round and case, so that the clock of CPU time, of hundredths of a second, is fine enough."""

_numbers = itertools.count()


class Case(NamedTuple):
    name: str
    model: str
    size: int
    steps: int
    edit: bool = False


CASES = [
    Case("emoji-64, text to image, 512x512, 16 steps", "emoji-64", 512, 16),
    Case("tiny Kolors, text to image, 256x256, 25 steps", "kolors", 256, 25),
    Case("tiny Kolors, image to image, 256x256, 15 of 25 steps", "kolors", 256, 25, edit=True),
]
MERGED = [
    Case("emoji-64, 512x512, 16 steps", "emoji-64", 512, 16),
    Case("tiny Kolors, 128x128, 25 steps", "kolors", 128, 25),
    Case("tiny Kolors, 256x256, 25 steps", "kolors", 256, 25),
    Case("emoji-64, 512x512, 16 steps, `dtype: auto`", "emoji-64-auto", 512, 16),
    Case("tiny Kolors, 128x128, 25 steps, `dtype: auto`", "kolors-auto", 128, 25),
    Case("tiny Kolors, 256x256, 25 steps, `dtype: auto`", "kolors-auto", 256, 25),
]
"""In float32, where the pixels' own work weighs most, and in the type that the service chooses for the CPU."""


def ask(url: str, case: Case, n: int = 1) -> list[bytes]:
    """The PNGs of one request to the service."""
    number = next(_numbers)
    fields: dict[str, Any] = {
        "model": case.model,
        "prompt": f"a cat and {number} dogs",
        "n": n,
        "size": f"{case.size}x{case.size}",
        "seed": number,
        "num_inference_steps": case.steps,
    }
    if case.edit:
        files = {"image": ("a.png", picture(case.size))}
        text = {name: str(value) for name, value in fields.items()} | {"strength": "0.6"}
        answer = httpx2.post(f"{url}/v1/images/edits", data=text, files=files, timeout=120)
    else:
        answer = httpx2.post(f"{url}/v1/images/generations", json=fields, timeout=120)
    answer.raise_for_status()
    return [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]]


def picture(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((size, size)).save(buffer, "PNG")
    return buffer.getvalue()


class Bare:
    """A process that draws with the pipelines alone, one line of numbers for each lot of pictures."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(HERE / "bare.py"), str(folder)]
        environment = {**os.environ, **ONE_THREAD}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def cpu(self, case: Case, pictures: int) -> float:
        """CPU seconds of so many pictures."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = (case.model, case.size, case.steps, int(case.edit), next(_numbers), pictures)
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def service_cpu(pid: int, url: str, case: Case, requests: int, n: int = 1) -> float:
    """CPU seconds of so many requests for ``n`` pictures each."""
    before = cpu_seconds(pid)
    for _ in range(requests):
        ask(url, case, n)
    return cpu_seconds(pid) - before


def wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with status {process.returncode}")
        try:
            if httpx2.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError("the service was not ready within four minutes")


def costs(pid: int, url: str, bare: Bare, rounds: int) -> list[str]:
    """Rows of the first table."""
    pairs: dict[Case, list[tuple[float, float]]] = {case: [] for case in CASES}
    for number in range(-1, rounds):  # the first one warms up
        for case in CASES:
            theirs = bare.cpu(case, PICTURES)
            ours = service_cpu(pid, url, case, PICTURES)
            if number >= 0:
                pairs[case].append((theirs / PICTURES, ours / PICTURES))
    rows = []
    for case, measured in pairs.items():
        theirs, ours = (median(pair[side] for pair in measured) * 1000 for side in (0, 1))
        ratio = median(mine / other for other, mine in measured)
        rows.append(f"| {case.name} | {theirs:.0f} ms | {ours:.0f} ms | {ratio:.3f}× |")
    return rows


def savings(pid: int, url: str, rounds: int) -> list[str]:
    """Rows of the second table."""
    pairs: dict[Case, list[tuple[float, float]]] = {case: [] for case in MERGED}
    for number in range(-1, rounds):
        for case in MERGED:
            alone = service_cpu(pid, url, case, PICTURES)
            together = service_cpu(pid, url, case, PICTURES // 4, n=4)
            if number >= 0:
                pairs[case].append((alone / PICTURES, together / PICTURES))
    rows = []
    for case, measured in pairs.items():
        alone, together = (median(pair[side] for pair in measured) * 1000 for side in (0, 1))
        ratio = median(single / merged for single, merged in measured)
        rows.append(f"| {case.name} | {alone:.0f} ms | {together:.0f} ms | {ratio:.2f}× |")
    return rows


def report(rounds: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "kolors"
        # As if trained on 256x256: from twice those pixels on, the service's autoencoder would work in tiles.
        kolors(folder.with_suffix(".tokenizer"), unet={"sample_size": 32}).save_pretrained(folder)
        config = Path(name) / "models.yml"
        config.write_text(CONFIG.format(folder=folder))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "quintet_vision", str(config), "--port", str(port), "--log-level", "warning"]
        bare = Bare(folder)
        try:
            with serving(command, ONE_THREAD, lambda process: wait_ready(process, url)) as pid:
                chosen = httpx2.get(f"{url}/v1/models/kolors-auto").json()["dtype"]
                first, second = costs(pid, url, bare, rounds), savings(pid, url, rounds)
        finally:
            bare.close()
    return "\n".join(
        [
            f"`make bench-vision`: CPU time per picture on one thread, medians of {rounds} interleaved rounds of "
            f"{PICTURES} pictures, PNG",
            "and, for the service, HTTP and base64 included. *Tiny Kolors* has every part of the real one and random "
            f"weights. All in float32; `dtype: auto` is {chosen} on this CPU.",
            "",
            "| one picture per request | bare pipeline | service | ratio |",
            "|---|---|---|---|",
            *first,
            "",
            "| four pictures | one by one | merged | saved |",
            "|---|---|---|---|",
            *second,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case (default: 5)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    options = parser.parse_args()
    text = report(options.rounds)
    print(text)
    if options.write:
        before, _, rest = DOCS.read_text().partition(BEGIN)
        DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
