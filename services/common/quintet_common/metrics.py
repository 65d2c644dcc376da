"""Prometheus metrics that every service has, with the same labels everywhere. Names follow vLLM's where it has one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from quintet_common.errors import CLIENT_CLOSED_REQUEST
from quintet_common.observation import Observation
from quintet_common.worker.process import State, Worker

registry = CollectorRegistry()
"""Every metric of this process; a service's own metrics go here too."""

ProcessCollector(registry=registry)
PlatformCollector(registry=registry)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Histogram buckets for times, in seconds: from a cached answer to a large picture on a slow machine."""

REQUESTS = Counter("quintet_requests", "Requests answered", ["service", "model", "endpoint", "code"], registry=registry)
LATENCY = Histogram(
    "quintet_e2e_request_latency_seconds",
    "From the request's arrival to the last byte of its answer",
    ["service", "model", "endpoint"],
    buckets=SECONDS,
    registry=registry,
)
FIRST_OUTPUT = Histogram(
    "quintet_time_to_first_output_seconds",
    "From the request's arrival to the first token, image, audio chunk or vector",
    ["service", "model", "endpoint"],
    buckets=SECONDS,
    registry=registry,
)
QUEUE = Histogram(
    "quintet_request_queue_time_seconds",
    "From the request's arrival to the start of its work",
    ["service", "model"],
    buckets=SECONDS,
    registry=registry,
)
PROMPT_TOKENS = Counter(
    "quintet_prompt_tokens", "Tokens of accepted prompts and texts", ["service", "model"], registry=registry
)

ENGINE_HELP = {
    "num_requests_running": "Requests that the engine works on",
    "num_requests_waiting": "Requests that wait in the engine",
    "kv_cache_usage_perc": "Share of the memory for keys and values that is in use, 0 to 1",
    "prefix_cache_queries_total": "Tokens of prompts that were looked up in the prefix cache",
    "prefix_cache_hits_total": "Tokens of prompts that the prefix cache had",
    "prefill_steps_total": "Steps that computed prompts, or a piece of one",
    "prefill_tokens_total": "Tokens of prompts that the prefix cache did not have",
    "decode_steps_total": "Steps that computed the next token of all running answers",
    "decode_tokens_total": "Tokens chosen, the first of an answer too",
    "preemptions_total": "Answers that gave up their place when memory was full, to be computed again",
    "prompt_cache_hits_total": "Prompts that were encoded before",
    "prompt_cache_misses_total": "Prompts that had to be encoded",
    "prompt_cache_bytes": "Memory that encoded prompts take",
    "batches_total": "Batches computed, also those for clients that left",
    "batch_texts_total": "Texts in the batches computed",
}
"""What engines report, by the names that they use. Others may be reported, too."""


def record(seen: Observation, seconds: float) -> None:
    """Count one finished request. A request that was never answered is a client that left."""
    code = seen.code or CLIENT_CLOSED_REQUEST
    REQUESTS.labels(seen.service, seen.model, seen.endpoint, str(code)).inc()
    LATENCY.labels(seen.service, seen.model, seen.endpoint).observe(seconds)
    if seen.first_output is not None:
        FIRST_OUTPUT.labels(seen.service, seen.model, seen.endpoint).observe(seen.first_output)


class WorkerCollector(Collector):
    """What is read from the workers at scrape time: state, restarts, memory, and what each engine reports."""

    def __init__(self, service: str, workers: Iterable[Worker[Any]]) -> None:
        self._service = service
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        labels = ["service", "model"]
        state = GaugeMetricFamily(
            "quintet_model_state", "1 for the state that the model is in", labels=[*labels, "state"]
        )
        progress = GaugeMetricFamily("quintet_model_load_progress", "How far loading is, 0 to 1", labels=labels)
        restarts = CounterMetricFamily(
            "quintet_worker_restarts", "Times that the model's process was restarted", labels=labels
        )
        memory = GaugeMetricFamily(
            "quintet_worker_memory_bytes", "Resident memory of the model's process", labels=labels
        )
        stats: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for worker in self._workers:
            who = [self._service, worker.spec.id]
            for each in State:
                state.add_metric([*who, each.value], float(worker.state is each))
            progress.add_metric(who, worker.progress)
            restarts.add_metric(who, worker.restarts)
            memory.add_metric(who, _resident_bytes(worker.pid))
            for name, value in worker.stats.items():
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                told = ENGINE_HELP.get(name, f"{name} of the engine")
                family = stats.setdefault(name, kind(f"quintet_{name}", told, labels=labels))
                family.add_metric(who, value)
        yield from (state, progress, restarts, memory, *stats.values())


def _resident_bytes(pid: int | None) -> float:
    """Resident memory of a process, from Linux's /proc; 0 elsewhere."""
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return float(statm.read().split()[1]) * 4096
    except (OSError, IndexError):
        return 0.0


def exposition() -> bytes:
    return generate_latest(registry)
