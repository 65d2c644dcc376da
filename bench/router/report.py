"""The figures as Markdown, and their place in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from measure import Behaviour, Sample

OURS = "quintet"
BEGIN, END = "<!-- bench/router writes from here -->", "<!-- to here -->"
TITLE = "# Benchmarks\n"
SAID = (
    "CPU is user and system time of the router's processes divided by the work done, at the pass where it was least; "
    "for streams at the pass where events were on their way for the shortest time, since what comes late comes "
    "together, which is cheaper. Latency is the least median of all passes. Ratios are of these figures; in brackets "
    "the median of the ratios of each pass."
)


@dataclass
class Result:
    """All that was measured of one target: per load one sample for each pass."""

    about: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    behaviour: Behaviour | None = None
    resident_mb: float = 0.0

    def best(self, load: str) -> Sample | None:
        """The pass that counts."""
        samples = self.samples.get(load)
        if not samples:
            return None
        return min(samples, key=lambda sample: sample.event_delay if load.startswith("stream") else sample.cpu)

    def latency(self, load: str) -> float | None:
        return min((sample.latency for sample in self.samples.get(load, [])), default=None)


Results = dict[str, Result]


def report(results: Results, left_out: dict[str, str], head: str) -> str:
    """Everything, as Markdown without a title."""
    parts = [head, figures(results), SAID, "### Quintet's figure divided by the other's", ratios(results)]
    parts += ["### Clients that leave or do not read", behaviours(results), "### Goals", goals(results)]
    if left_out:
        parts.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in left_out.items()) + ".")
    return "\n\n".join(parts)


def figures(results: Results) -> str:
    heads = ["router", "ms CPU per request, 64 connections", "1 connection", "1 MiB of JSON", "p50 added, 1 connection"]
    heads += ["s CPU per 100,000 events, 64 × 50/s", "256 × 25/s", "core busy at 256 × 25/s", "resident"]
    base = results["direct"].latency("json1") if "direct" in results else None
    rows = []
    for name, result in results.items():
        if name == "direct":
            continue
        latency = result.latency("json1")
        added = "-" if latency is None or base is None else f"{(latency - base) / 1000:.3f} ms"
        crowd = result.best("stream256")
        row = [f"{name} ({result.about})", *(_cpu(result, load) for load in ("json64", "json1", "big1m")), added]
        row += [_cpu(result, "stream64"), _cpu(result, "stream256"), f"{crowd.busy:.0%}" if crowd else "-"]
        rows.append([*row, f"{result.resident_mb:.0f} MB"])
    return _table(heads, rows)


def ratios(results: Results) -> str:
    loads = {"json64": "request, 64 connections", "json1": "1 connection", "big1m": "1 MiB of JSON"}
    loads |= {"stream64": "event, 64 × 50/s", "stream256": "256 × 25/s"}
    rows = [
        [name, *(_ratio_cell(results, name, load) for load in loads)]
        for name in results
        if name != "direct" and not name.startswith(OURS)
    ]
    return _table(["against", *loads.values()], rows)


def behaviours(results: Results) -> str:
    heads = [
        "router",
        "left in mid-stream: upstream saw",
        "events sent for each",
        "left before the answer: upstream saw",
    ]
    heads += ["upstream could send to each that does not read", "and in 2 s more", "memory for 4 of them"]
    rows = []
    for name, result in results.items():
        seen = result.behaviour
        if seen is None or name == "direct":
            continue
        row = [name, f"{min(seen.aborts_seen, seen.hung_up)} of {seen.hung_up}", f"{seen.events_per_abort:.1f}"]
        row += [f"{seen.early_seen} of {seen.early}", f"{seen.stalled_mb:.1f} MB", f"{seen.stalled_growth_mb:.1f} MB"]
        rows.append([*row, f"{seen.stalled_resident_mb:.0f} MB"])
    return _table(heads, rows)


def ratio(results: Results, other: str, load: str) -> float | None:
    """Ours divided by the other's."""
    if other not in results or OURS not in results:
        return None
    ours, theirs = results[OURS].best(load), results[other].best(load)
    return ours.cpu / theirs.cpu if ours and theirs and theirs.cpu else None


def goals(results: Results) -> str:
    def of(other: str, load: str) -> Callable[[], float | None]:
        return lambda: ratio(results, other, load)

    def added() -> float | None:
        ours, base = results[OURS].latency("json1"), results["direct"].latency("json1")
        return None if ours is None or base is None else (ours - base) / 1000

    def busy() -> float | None:
        sample = results[OURS].best("stream256")
        return sample.busy if sample else None

    def stalled() -> float | None:
        seen = results[OURS].behaviour
        return seen.stalled_mb + seen.stalled_growth_mb if seen else None

    wanted: list[tuple[str, float, Callable[[], float | None]]] = [
        ("CPU per request, × sglang-router", 1.2, of("sglang-router", "json64")),
        ("CPU per request, × nginx", 7, of("nginx", "json64")),
        ("CPU per request, × production-stack", 1 / 8, of("production-stack", "json64")),
        ("CPU per request, × LiteLLM", 1 / 80, of("litellm", "json64")),
        ("CPU per event at 64 × 50/s, × nginx", 1.4, of("nginx", "stream64")),
        ("CPU per event at 64 × 50/s, × sglang-router", 1.2, of("sglang-router", "stream64")),
        ("CPU per request of 1 MiB, × sglang-router", 1.0, of("sglang-router", "big1m")),
        ("p50 added at one connection, ms", 0.2, added),
        ("share of a core at 256 × 25/s", 0.4, busy),
        ("resident memory, MB", 80, lambda: results[OURS].resident_mb),
        ("taken in for a client that does not read, MB", 10, stalled),
    ]
    rows = []
    if OURS in results and "direct" in results:
        for what, limit, figure in wanted:
            value = figure()
            verdict = "not measured" if value is None else "met" if value <= limit else "**missed**"
            rows.append([what, f"≤ {limit:.3g}", "-" if value is None else f"{value:.3g}", verdict])
    return _table(["goal", "limit", "measured", ""], rows)


def _ratio_cell(results: Results, other: str, load: str) -> str:
    value = ratio(results, other, load)
    if value is None:
        return "-"
    pairs = zip(results[OURS].samples[load], results[other].samples[load], strict=False)
    each = [ours.cpu / theirs.cpu for ours, theirs in pairs if theirs.cpu]
    return f"**{value:.3g}** ({median(each):.3g})"


def _cpu(result: Result, load: str) -> str:
    sample = result.best(load)
    return "-" if sample is None else f"{sample.cpu:.3g}" + (f" ({sample.failed} failed)" if sample.failed else "")


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write_section(path: Path, text: str) -> None:
    """Put ``text`` under the heading "Router" of the document at ``path``; nothing else in it changes."""
    section = f"{BEGIN}\n\n{text}\n\n{END}"
    old = path.read_text() if path.exists() else TITLE
    if BEGIN in old and END in old:
        before, _, rest = old.partition(BEGIN)
        path.write_text(before + section + rest.partition(END)[2])
    else:
        path.write_text(f"{old.rstrip()}\n\n## Router\n\n{section}\n")
