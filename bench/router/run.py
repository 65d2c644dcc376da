"""What a router costs in front of the same upstreams: ours, nginx, sglang-router, vllm-router and LiteLLM.

    make bench-router                                        all of them, into docs/benchmarks.md
    python bench/router/run.py --only direct,nginx,quintet   some of them, to the terminal only
    python bench/router/run.py --also 'mine=my-router --port {port} --upstreams {upstreams}'

All targets run at once, each pinned to the first core; two mock upstreams (one process) and the load generator share
the second. In each pass every load goes to one target after the other, so that what else the machine does falls on all
alike. The figure to trust is CPU time per request or event: it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import subprocess
import sys
from pathlib import Path

from machine import CACHE, compile_tools, describe, on_core, resident_mb, running
from measure import LOADS, Bench, Load, write_bodies
from processes import free_port
from report import Result, Results, report, write_section
from targets import ALL, Maker, Missing, Target, other

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


class Session:
    """The targets that are up, and what was measured of them."""

    def __init__(self, bench: Bench, mocks: list[int], core: int) -> None:
        self._bench = bench
        self._mocks = mocks
        self._core = core
        self._up: list[tuple[Target, int | None]] = []
        self.results: Results = {}
        self.left_out: dict[str, str] = {}

    def start(self, name: str, make: Maker, stack: contextlib.ExitStack) -> None:
        """Install and start a target; if that fails, remember why."""
        try:
            target = make(self._mocks)
            process = None
            if target.command:
                command = on_core(self._core, target.command)
                process = stack.enter_context(running(name, command, target.environment))
            self._bench.wait_until_up(target, process)
        except (Missing, RuntimeError, OSError, subprocess.SubprocessError) as error:
            self.left_out[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
            return
        self._up.append((target, process.pid if process else None))
        self.results[name] = Result(target.about)

    def pass_over(self, loads: list[Load], number: int) -> None:
        """Pass ``number``, from 0: every load on every target; of no proxy at all only the latency is of interest."""
        for load in loads:
            for target, pid in self._up:
                if (target.passes is not None and number >= target.passes) or (pid is None and load.name != "json1"):
                    continue
                try:
                    sample = self._bench.run(load, target, pid)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    print(f"{target.name}, {load.name}: {error}", file=sys.stderr)
                    continue
                self.results[target.name].samples.setdefault(load.name, []).append(sample)
                print(f"{load.name:10}{target.name:14}{_line(sample.__dict__)}", file=sys.stderr)

    def finish(self, behave: bool) -> None:
        """Memory after the loads, and what becomes of clients that leave."""
        for target, pid in self._up:
            result = self.results[target.name]
            result.resident_mb = resident_mb(pid) if pid else 0.0
            if behave and pid:
                result.behaviour = self._bench.behave(target, pid)
                print(f"{'behaviour':10}{target.name:14}{_line(result.behaviour.__dict__)}", file=sys.stderr)


def _line(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def head(passes: int, load_before: float) -> str:
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return (
        f"`make bench-router`, {today}, {describe()}; {passes} passes, all routers taking turns in each; load average "
        f"{load_before:.1f} before the run. Every router has two upstreams and one core, and balances over them; the "
        "upstreams and the clients share another core. An answer has 330 bytes, an event 190."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {','.join(ALL)}")
    parser.add_argument("--loads", help=f"some of {','.join(load.name for load in LOADS)}")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND", help="one more router")
    parser.add_argument("--quick", action="store_true", help="leave out what becomes of clients that leave")
    parser.add_argument("--write", action="store_true", help=f"write docs/{DOCUMENT.name}, too")
    return parser.parse_args()


def main() -> None:
    options = parse()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("Two cores are needed: one for the routers, one for the load.")
    CACHE.mkdir(parents=True, exist_ok=True)
    compile_tools()
    write_bodies()
    wanted = options.only.split(",") if options.only else list(ALL)
    makers = {name: ALL[name] for name in wanted} | {spec.partition("=")[0]: other(spec) for spec in options.also}
    loads = [load for load in LOADS if not options.loads or load.name in options.loads.split(",")]
    mocks = [free_port(), free_port()]
    busy = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        mock = on_core(cores[1], [str(CACHE / "mock"), *map(str, mocks)])
        stack.enter_context(running("mock", mock, {}))
        session = Session(Bench(mocks[0], cores[1]), mocks, cores[0])
        for name, make in makers.items():
            session.start(name, make, stack)
        for number in range(options.passes):
            print(f"pass {number + 1} of {options.passes}", file=sys.stderr)
            session.pass_over(loads, number)
        session.finish(not options.quick)
    text = report(session.results, session.left_out, head(options.passes, busy))
    print(text)
    if options.write:
        write_section(DOCUMENT, text)


if __name__ == "__main__":
    main()
