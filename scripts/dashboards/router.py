"""The dashboard router: what routers and their upstreams do."""

from __future__ import annotations

from grafana import Board, Panel
from shared import AMBER, RATE, RED, quantiles, rate

WHERE = 'service="router", instance=~"$instance", model=~"$model"'
WAITING = 'service="router", model=~"$model"'
PROCESS = 'service="router", instance=~"$instance"'
requests = [
    Panel(
        "Answers by status", "reqps",
        "4xx are the clients' mistakes, 401 and 403 their keys', 429 a limit; 499 left; 5xx are ours.",
        {"{{code}}": rate("quintet_requests_total", WHERE, "code")}, stacked=True,
    ),
    Panel(
        "Requests by upstream", "reqps",
        "How replicas share the work. One that gets nothing is down or its circuit is open; one that gets most "
        "holds the conversations.",
        {"{{upstream}}": rate("quintet_requests_total", WHERE, "upstream")},
    ),
    Panel(
        "Errors by upstream", "reqps",
        "Answers with 5xx. One replica alone in it: take it away; all of a model: see its service's log.",
        {"{{upstream}}": f'sum by (upstream) (rate(quintet_requests_total{{{WHERE}, code=~"5.."}}{RATE}))'
         " or vector(0)"},
    ),
    Panel(
        "Latency", "s", "From arrival to the last byte, of all kinds together; the kinds' dashboards have each.",
        quantiles("quintet_e2e_request_latency_seconds", WHERE),
    ),
    Panel(
        "Time to the answer's headers", "s",
        "How long an upstream thinks before it begins to answer, by model.",
        quantiles("quintet_time_to_first_output_seconds", WHERE, "model", (0.95,)),
    ),
    Panel(
        "The router's own time", "s",
        "From a request's last byte until an upstream gets it. Above 10 ms: the router is short of CPU, or "
        "connections to upstreams are slow to open.",
        quantiles("quintet_router_overhead_seconds", WHERE, "", (0.5, 0.99)),
        steps=[(0.05, RED)],
    ),
]  # fmt: skip
upstreams = [
    Panel(
        "In flight", "short",
        "Requests at each upstream now. At max_concurrent further ones wait here.",
        {"{{upstream}}": f"sum by (upstream) (quintet_router_in_flight{{{PROCESS}}})"}, stacked=True,
    ),
    Panel(
        "Waiting", "short",
        "For a turn: upstreams are full, add replicas. For a model: it loads or starts from zero.",
        {
            f"for a {what}": f'sum(quintet_router_waiting{{{WAITING}, for="{what}"}}) or vector(0)'
            for what in ("turn", "model")
        },
        steps=[(32, AMBER)],
    ),
    Panel(
        "Waited", "short",
        "So many requests waited for their turn on average: the time they waited, in seconds per second.",
        {"waiting": f"sum(rate(quintet_request_queue_time_seconds_sum{{{WHERE}}}{RATE}))"},
    ),
    Panel(
        "Upstreams", "short",
        "1 where the upstream answers polls, by router. 0: nothing listens there, or it hangs.",
        {"{{upstream}}": f"sum by (upstream, instance) (quintet_router_upstream_up{{{PROCESS}}})"}, "table",
    ),
    Panel(
        "Open circuits", "short",
        "Upstreams that are left alone after five failures in a row. See their logs.",
        {"{{upstream}}": f'max by (upstream) (quintet_router_breaker_state{{{PROCESS}, state!="closed"}})'},
        steps=[(1, RED)],
    ),
    Panel(
        "Sent again, and left", "reqps",
        "Retries hide an unwell upstream from clients; clients that leave are often out of patience.",
        {
            "retries": f"sum(rate(quintet_router_retries_total{{{WHERE}}}{RATE}))",
            "clients that left": f"sum(rate(quintet_client_disconnects_total{{{WHERE}}}{RATE}))",
        },
    ),
]  # fmt: skip
used = [
    Panel(
        "Used by key", "short",
        "What each key has used within the time shown, in the units of each model's kind.",
        {
            "{{key}} {{model}} {{unit}}": "sum by (key, model, unit)"
            ' (increase(quintet_usage_total{model=~"$model"}[$__range])) > 0'
        },
        "table", 24,
    ),
]  # fmt: skip
machine = [
    Panel(
        "CPU", "percentunit", "Of one core. A router uses one at most: near 100 % add another router.",
        {"{{instance}}": f"rate(process_cpu_seconds_total{{{PROCESS}}}{RATE})"}, width=6, steps=[(0.9, RED)],
    ),
    Panel(
        "Event loop late", "s", "Every answer is late by so much. Above 0.1 s the router is short of CPU.",
        {"{{instance}}": f"quintet_event_loop_lag_seconds{{{PROCESS}}}"}, width=6, steps=[(0.1, RED)],
    ),
    Panel(
        "Memory", "bytes", "Grows with the bodies in flight: pictures and long conversations.",
        {"{{instance}}": f"process_resident_memory_bytes{{{PROCESS}}}"}, width=6,
    ),
    Panel(
        "Configuration taken over", "bool_yes_no",
        "No: what is written now is wrong, and the router goes on with what it had. Its log has file and line.",
        {"{{instance}}": f"quintet_config_last_reload_successful{{{PROCESS}}}"}, "stat", 6,
    ),
]  # fmt: skip
BOARD = Board(
    "router", "Quintet / Router",
    {"Requests": requests, "Upstreams": upstreams, "Usage": used, "Process": machine},
    {
        "instance": 'label_values(quintet_event_loop_lag_seconds{service="router"}, instance)',
        "model": 'label_values(quintet_requests_total{service="router"}, model)',
    },
)  # fmt: skip
