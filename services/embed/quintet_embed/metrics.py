"""What is counted of embeddings beside what every service counts."""

from __future__ import annotations

from prometheus_client import Counter, Histogram
from quintet_common.metrics import PROMPT_TOKENS, QUEUE, registry

from quintet_embed.protocol import Work

SERVICE = "embed"
_LABELS = ["service", "model"]

VECTORS = Counter("quintet_vectors", "Vectors computed", _LABELS, registry=registry)
SCORES = Counter("quintet_rerank_scores", "Documents scored against a query", _LABELS, registry=registry)
BATCH_SIZE = Histogram(
    "quintet_batch_size",
    "Texts that the model computed together",
    _LABELS,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    registry=registry,
)


def count_work(model: str, work: Work) -> None:
    """Count what a finished request tells of itself."""
    PROMPT_TOKENS.labels(SERVICE, model).inc(work.prompt_tokens)
    QUEUE.labels(SERVICE, model).observe(work.queue_seconds)
    sizes = BATCH_SIZE.labels(SERVICE, model)
    for size in work.batch_sizes:
        sizes.observe(size)
