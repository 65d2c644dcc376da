"""The dashboard overview: what goes on, for who looks first."""

from __future__ import annotations

from grafana import Board, Panel
from shared import AMBER, RATE, RED, quantiles, rate

ROUTED = 'service="router", model=~"$model"'
SERVED = 'model=~"$model"'
now = [
    Panel(
        "Requests", "reqps", "Requests that routers answer, of all kinds and with all results.",
        {"requests": f"sum(rate(quintet_requests_total{{{ROUTED}}}{RATE}))"}, "stat", 4, 4,
    ),
    Panel(
        "Errors", "percentunit",
        "The share of answers with 5xx. Above 1 % look which model and which upstream it is, on the router's "
        "dashboard.",
        {
            "errors": f'(sum(rate(quintet_requests_total{{{ROUTED}, code=~"5.."}}{RATE})) or vector(0))'
            f" / sum(rate(quintet_requests_total{{{ROUTED}}}{RATE}))"
        },
        "stat", 4, 4, [(0.01, AMBER), (0.05, RED)],
    ),
    Panel(
        "Not answering", "short",
        "Routers and services that Prometheus cannot scrape. See which in the table of models, and why it ended.",
        {"down": 'count(up{job="quintet"} == 0) or vector(0)'}, "stat", 4, 4, [(1, RED)],
    ),
    Panel(
        "Models not ready", "short",
        "Models that load, or that cannot be loaded: requests for them wait, then get 503. The table below has "
        "their states; /v1/models has the reasons.",
        {"models": f'count(quintet_model_state{{{SERVED}, state=~"loading|failed"}} == 1) or vector(0)'},
        "stat", 4, 4, [(1, AMBER)],
    ),
    Panel(
        "Waiting", "short",
        "Requests that wait at routers and in engines. Growing: add replicas, or see which model does not come up.",
        {
            "waiting": f"(sum(quintet_num_requests_waiting{{{SERVED}}}) or vector(0))"
            f" + (sum(quintet_router_waiting{{{SERVED}}}) or vector(0))"
        },
        "stat", 4, 4, [(32, AMBER), (256, RED)],
    ),
    Panel(
        "Alerts", "short", "Alerts of Quintet that are firing now.",
        {"firing": 'count(ALERTS{alertname=~"Quintet.*", alertstate="firing"}) or vector(0)'},
        "stat", 4, 4, [(1, RED)],
    ),
]  # fmt: skip
requests = [
    Panel(
        "Requests by model", "reqps", "Who is asked how much. A model that falls to zero may have lost its name.",
        {"{{model}}": rate("quintet_requests_total", ROUTED, "model")}, stacked=True,
    ),
    Panel(
        "Not 2xx by model and status", "reqps",
        "429: a full queue or a key's limit. 499: clients left, perhaps out of patience. 5xx: ours.",
        {"{{model}} {{code}}": rate("quintet_requests_total", f'{ROUTED}, code!~"2.."', "model, code")},
    ),
    Panel(
        "Latency", "s",
        "From arrival to the last byte, for 95 of 100 requests. It depends on what is asked for; compare with "
        "yesterday.",
        quantiles("quintet_e2e_request_latency_seconds", ROUTED, "model", (0.95,)),
    ),
]  # fmt: skip
made = [
    Panel(
        "Tokens", "short", "Tokens that chat models generate in a second.",
        {"{{model}}": rate("quintet_generation_tokens_total", SERVED, "model")}, width=6, height=6,
    ),
    Panel(
        "Pictures", "short", "Pictures drawn in a minute.",
        {"{{model}}": "60 * " + rate("quintet_images_total", SERVED, "model")}, width=6, height=6,
    ),
    Panel(
        "Speech", "short", "Seconds of sound made in a second: so many listeners could be served at once.",
        {"{{model}}": rate("quintet_audio_seconds_total", SERVED, "model")}, width=6, height=6,
    ),
    Panel(
        "Vectors", "short", "Vectors computed in a second.",
        {"{{model}}": rate("quintet_vectors_total", SERVED, "model")}, width=6, height=6,
    ),
]  # fmt: skip
models = [
    Panel(
        "States", "short",
        "Every model on every replica. idle: unloaded, the next request loads it. failed: see the service's log.",
        {"{{model}} {{state}}": f"sum by (service, model, instance, state) (quintet_model_state{{{SERVED}}} == 1)"},
        "table", 12,
    ),
    Panel(
        "Memory", "bytes",
        "Resident memory of the models' processes. Near a container's limit the kernel ends one of them.",
        {"{{model}}": f"sum by (model) (quintet_worker_memory_bytes{{{SERVED}}})"}, width=6, stacked=True,
    ),
    Panel(
        "Restarts of models' processes", "short",
        "In the last hour. More than one or two: out of memory, most often; the service's log has the reason.",
        {"{{model}}": f"sum by (model) (increase(quintet_worker_restarts_total{{{SERVED}}}[1h]))"},
        width=6, steps=[(3, RED)],
    ),
]  # fmt: skip
rows = {"Now": now, "Requests": requests, "What is made": made, "Models": models}
BOARD = Board("overview", "Quintet / Overview", rows, {"model": "label_values(quintet_model_state, model)"})
