"""The dashboard embeddings: vectors and scores."""

from __future__ import annotations

from grafana import Board, Panel
from shared import AMBER, ASKED, model_panels, model_variables, quantiles, rate

WHERE = 'service="embed", instance=~"$instance", model=~"$model"'
vectors = [
    Panel(
        "Vectors", "short", "Computed in a second.",
        {"{{model}}": rate("quintet_vectors_total", WHERE, "model")},
    ),
    Panel(
        "Documents scored", "short", "Of reranking, in a second.",
        {"{{model}}": rate("quintet_rerank_scores_total", WHERE, "model") + " or vector(0)"},
    ),
    Panel(
        "Tokens", "short", "Read in a second: what the hardware gives.",
        {"{{model}}": rate("quintet_prompt_tokens_total", WHERE, "model")},
    ),
    Panel(
        "Texts in a batch", "short",
        "More under load is right: a batch is what has come while the last one was computed. At 1 under load, "
        "clients send one text at a time and wait.",
        {
            "{{model}} mean": f"{rate('quintet_batch_texts_total', WHERE, 'model')}"
            f" / ({rate('quintet_batches_total', WHERE, 'model')} > 0)",
            **quantiles("quintet_batch_size", WHERE, "model", (0.95,)),
        },
    ),
    Panel(
        "Latency", "s", "From arrival to the last byte.",
        quantiles("quintet_e2e_request_latency_seconds", WHERE + ASKED, "endpoint", (0.5, 0.95)), steps=[(1, AMBER)],
    ),
]  # fmt: skip
BOARD = Board(
    "embeddings", "Quintet / Embeddings", {"Vectors": vectors, "Models": model_panels(WHERE)}, model_variables("embed")
)
