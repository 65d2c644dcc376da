"""The dashboard chat: tokens."""

from __future__ import annotations

from grafana import Board, Panel
from shared import AMBER, ASKED, RATE, RED, model_panels, model_variables, quantiles, rate

WHERE = 'service=~"chat|multimodal", instance=~"$instance", model=~"$model"'
tokens = [
    Panel(
        "Tokens generated", "short", "In a second, over all requests of a model: what the hardware gives.",
        {"{{model}}": rate("quintet_generation_tokens_total", WHERE, "model")},
    ),
    Panel(
        "Prompt tokens", "short", "Read in a second. Long prompts cost time to the first token.",
        {"{{model}}": rate("quintet_prompt_tokens_total", WHERE, "model")},
    ),
    Panel(
        "Choices by how they ended", "ops",
        "stop and length by themselves, tool_calls for a tool, abort because the client left.",
        {"{{finished_reason}}": rate("quintet_request_success_total", WHERE, "finished_reason")}, stacked=True,
    ),
    Panel(
        "Time to the first token", "s",
        "What people feel as speed. Above 10 s: long prompts or a queue; compare with the time in the queue.",
        quantiles("quintet_time_to_first_token_seconds", WHERE), steps=[(10, RED)],
    ),
    Panel(
        "Between two tokens", "s",
        "Above 0.1 s people read faster than it writes: too many sequences at once for the hardware.",
        quantiles("quintet_inter_token_latency_seconds", WHERE), steps=[(0.1, AMBER)],
    ),
    Panel(
        "Latency", "s", "From arrival to the last byte. Long answers take long; time to the first token says more.",
        quantiles("quintet_e2e_request_latency_seconds", WHERE + ASKED, "model", (0.5, 0.95)),
    ),
]  # fmt: skip
STEPS = f"rate(quintet_decode_steps_total{{{WHERE}}}{RATE})"
engine = [
    Panel(
        "Cache of keys and values", "percentunit",
        "Full: sequences have to wait or to start again. Raise kv_memory, or lower context.",
        {"{{model}} {{instance}}": f"quintet_kv_cache_usage_perc{{{WHERE}}}"}, steps=[(0.95, RED)], most=1,
    ),
    Panel(
        "Sequences in a step", "short",
        "How many are decoded together, on average. More of them cost hardly more time: this is what batching wins.",
        {"{{model}}": f"sum by (model) (rate(quintet_decode_tokens_total{{{WHERE}}}{RATE}))"
         f" / (sum by (model) ({STEPS}) > 0)"},
    ),
    Panel(
        "Started again", "ops",
        "Sequences that lost their place because the cache was full. Anything above zero for long: raise kv_memory.",
        {"preemptions": f"sum(rate(quintet_preemptions_total{{{WHERE}}}{RATE})) or vector(0)"}, steps=[(0.1, AMBER)],
    ),
]  # fmt: skip
BOARD = Board(
    "chat", "Quintet / Chat", {"Tokens": tokens, "Engine": engine, "Models": model_panels(WHERE)},
    model_variables("chat|multimodal"),
)  # fmt: skip
