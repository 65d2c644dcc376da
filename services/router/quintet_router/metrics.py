"""What the router counts. Plain numbers on the hot path; Prometheus' shapes are made when it asks for them."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from quintet_router.upstream.upstream import Upstream

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)
FORGET_SECONDS = 900.0
"""So long what was counted of an upstream is shown after it has left; Prometheus has long seen the last of it."""
_LATENCY = "From the request's arrival to the last byte of its answer"
_FIRST = "From the request's arrival to the headers of its answer"
_OVERHEAD = "From a request's last byte until an upstream gets it"
_QUEUE = "How long requests waited for their turn, of those that did"
_USAGE = "What each key has used of each model, in the units of its kind"
_WHO = ["service", "model", "endpoint", "upstream"]


class Histogram:
    """``bounds`` are upper limits in seconds, ascending."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(total)))
        family.add_metric(labels, buckets, self._sum)


class Cell:
    """Everything counted for one (model, endpoint, upstream)."""

    __slots__ = ("codes", "disconnects", "first_byte", "latency", "overhead", "queue", "retries")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.latency = Histogram(SECONDS)
        self.first_byte = Histogram(SECONDS)
        self.overhead = Histogram(SHORT)
        self.queue = Histogram(SECONDS)
        self.retries = 0
        self.disconnects = 0


class Metrics(Collector):
    """Labels hold only names from the catalog and the table of paths, so a client cannot make new ones."""

    def __init__(self, upstreams: Callable[[], Iterable[Upstream]]) -> None:
        self._upstreams = upstreams
        self._cells: dict[tuple[str, str, str], Cell] = {}
        self._gone: dict[str, float] = {}
        """Upstreams that have cells and have left, and since when."""
        self._usage: dict[tuple[str, str], dict[str, float]] = {}
        self.waiting: list[tuple[str, Mapping[str, int]]] = []
        """Requests that wait, by model, for each (what they wait for)."""
        self.more: list[Callable[[], Iterable[Metric]]] = []
        """What other parts want to have shown."""
        self.loop_lag = 0.0
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(self)

    def cell(self, model: str, endpoint: str, upstream: str) -> Cell:
        key = (model, endpoint, upstream)
        cell = self._cells.get(key)
        if cell is None:
            self._forget(monotonic())
            cell = self._cells[key] = Cell()
        return cell

    def _forget(self, now: float) -> None:
        """Let go of what was counted of upstreams that have left. Behind a DNS name each address is one, so there would
        be more and more of them."""
        present = {upstream.label for upstream in self._upstreams()}
        gone = {upstream for _, _, upstream in self._cells if upstream and upstream not in present}
        self._gone = {upstream: self._gone.get(upstream, now) for upstream in gone}
        old = {upstream for upstream, since in self._gone.items() if now - since >= FORGET_SECONDS}
        if old:
            self._cells = {key: cell for key, cell in self._cells.items() if key[2] not in old}

    def use(self, key: str, model: str, amounts: Mapping[str, float]) -> None:
        """Add to what a key has used of a model, by unit."""
        counts = self._usage.get((key, model))
        if counts is None:
            counts = self._usage[key, model] = {}
        for unit in amounts:
            counts[unit] = counts.get(unit, 0.0) + amounts[unit]

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    async def watch_loop(self) -> None:
        """Measure how late the event loop runs, until cancelled."""
        while True:
            before = monotonic()
            await asyncio.sleep(0.5)
            self.loop_lag = max(0.0, monotonic() - before - 0.5)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("quintet_requests", "Requests answered", labels=[*_WHO, "code"])
        retries = CounterMetricFamily("quintet_router_retries", "Attempts that went to another connection", labels=_WHO)
        gone = CounterMetricFamily("quintet_client_disconnects", "Clients that left before the end", labels=_WHO)
        latency = HistogramMetricFamily("quintet_e2e_request_latency_seconds", _LATENCY, labels=_WHO)
        first = HistogramMetricFamily("quintet_time_to_first_output_seconds", _FIRST, labels=_WHO)
        overhead = HistogramMetricFamily("quintet_router_overhead_seconds", _OVERHEAD, labels=_WHO)
        queue = HistogramMetricFamily("quintet_request_queue_time_seconds", _QUEUE, labels=_WHO)
        usage = CounterMetricFamily("quintet_usage", _USAGE, labels=["service", "key", "model", "unit"])
        for (model, endpoint, upstream), cell in list(self._cells.items()):
            who = ["router", model, endpoint, upstream]
            for code, count in cell.codes.items():
                requests.add_metric([*who, str(code)], count)
            retries.add_metric(who, cell.retries)
            gone.add_metric(who, cell.disconnects)
            cell.latency.add_to(latency, who)
            cell.first_byte.add_to(first, who)
            cell.overhead.add_to(overhead, who)
            cell.queue.add_to(queue, who)
        for key_and_model, counts in list(self._usage.items()):
            for unit, amount in list(counts.items()):
                usage.add_metric(["router", *key_and_model, unit], amount)
        yield from (requests, retries, gone, latency, first, overhead, queue, usage, *self._gauges())
        for show in self.more:
            yield from show()

    def _gauges(self) -> Iterator[Metric]:
        labels = ["service", "upstream"]
        running = GaugeMetricFamily("quintet_router_in_flight", "Requests at an upstream", labels=labels)
        idle = GaugeMetricFamily("quintet_router_idle_connections", "Connections kept for later", labels=labels)
        breaker = GaugeMetricFamily(
            "quintet_router_breaker_state", "1 for the state of the upstream's circuit", labels=[*labels, "state"]
        )
        up = GaugeMetricFamily("quintet_router_upstream_up", "1 while the upstream answers polls", labels=labels)
        for upstream in self._upstreams():
            who = ["router", upstream.label]
            up.add_metric(who, float(upstream.cards is not None and upstream.breaker.reachable and not upstream.silent))
            running.add_metric(who, upstream.outstanding)
            idle.add_metric(who, len(upstream.pool.idle))
            for state in ("closed", "half_open", "open"):
                breaker.add_metric([*who, state], float(upstream.breaker.state == state))
        waiting = GaugeMetricFamily(
            "quintet_router_waiting", "Requests that wait for a turn or for a model", labels=["service", "model", "for"]
        )
        for what, lengths in self.waiting:
            for model, length in lengths.items():
                waiting.add_metric(["router", model, what], length)
        lag = GaugeMetricFamily("quintet_event_loop_lag_seconds", "How late the event loop ran last", labels=labels[:1])
        lag.add_metric(["router"], self.loop_lag)
        yield from (running, idle, breaker, up, waiting, lag)
