"""What ``/metrics`` of the services and of the router has."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, cast

from prometheus_client.core import Metric
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.process import Worker

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}


@cache
def of_services() -> tuple[Metric, ...]:
    """The metrics of all services, whose processes have only some of them each."""
    import quintet_chat.metrics
    import quintet_embed.metrics
    import quintet_tts.metrics
    import quintet_vision.api.results
    from quintet_common import metrics

    assert all((quintet_chat.metrics, quintet_embed.metrics, quintet_tts.metrics, quintet_vision.api.results))
    worker: Worker[Any] = Worker(ModelSpec(id="m", kind="chat", path="p"), "none:none", dict)
    worker.stats = dict.fromkeys(_engine_stats(), 0.0)
    return (*metrics.registry.collect(), *metrics.WorkerCollector("test", [worker]).collect())


@cache
def of_the_router() -> tuple[Metric, ...]:
    from quintet_router.configuration import Reloads, Sources
    from quintet_router.fleet import Fleet
    from quintet_router.metrics import Metrics

    router = Metrics(list)
    reloads = Reloads(Sources([], None, None), cast(Fleet, None), 1.0)
    router.cell("m", "/e", "u").codes[200] = 1
    router.use("key", "m", {"requests": 1})
    return (*router.collect(), *reloads.metrics())


def _engine_stats() -> set[str]:
    """What engines report beside the metrics that are declared: read in their source, for to run them needs models."""
    found: set[str] = set()
    for file in ROOT.glob("services/*/quintet_*/**/*.py"):
        text = file.read_text()
        found |= {f"{name}_total" for name in re.findall(r'counters\["(\w+)"\]', text)}
        if stats := re.search(r"def stats\(self\).*?(?=\n    def |\n    # |\Z)", text, re.DOTALL):
            found |= set(re.findall(r'"(\w+)":', stats[0]))
    return found
