"""What several dashboards show."""

from __future__ import annotations

from collections.abc import Sequence

from grafana import Panel

RED, AMBER = "red", "orange"
RATE = "[$__rate_interval]"
ASKED = ', endpoint!~"/models.*"'
"""Without the questions of routers, which ask every few seconds what there is."""


def quantiles(metric: str, where: str, by: str = "", shares: Sequence[float] = (0.5, 0.95, 0.99)) -> dict[str, str]:
    """A histogram's quantiles by legend; ``by`` is one more label to keep apart."""
    which, labels = (f"{{{{{by}}}}} ", f"le, {by}") if by else ("", "le")
    rates = f"sum by ({labels}) (rate({metric}_bucket{{{where}}}{RATE}))"
    return {f"{which}p{share * 100:.0f}": f"histogram_quantile({share}, {rates})" for share in shares}


def rate(metric: str, where: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}{RATE}))"


def model_panels(where: str) -> list[Panel]:
    """What is of interest of every kind of model."""
    return [
        Panel(
            "Open requests", "short",
            "Requests that the engine runs, and those that wait for a place. Waiting for long: add replicas, or raise "
            "max_batch where there is memory.",
            {
                "{{model}} running": f"sum by (model) (quintet_num_requests_running{{{where}}})",
                "{{model}} waiting": f"sum by (model) (quintet_num_requests_waiting{{{where}}})",
            },
            stacked=True,
        ),
        Panel(
            "Time in the queue", "s",
            "From a request's arrival to the start of its work. More than a few seconds: the model has more to do than "
            "it can.",
            quantiles("quintet_request_queue_time_seconds", where, "model", (0.5, 0.95)),
            steps=[(30, RED)],
        ),
        Panel(
            "Memory of the model's process", "bytes",
            "Resident memory of each model's process, without what lies on a GPU. Near the container's limit the next "
            "large request ends the process.",
            {"{{model}} {{instance}}": f"quintet_worker_memory_bytes{{{where}}}"},
        ),
        Panel(
            "Answers by status", "reqps",
            "4xx are the clients' mistakes, 429 a full queue, 499 clients that left, 5xx ours: see the service's log.",
            {"{{code}}": rate("quintet_requests_total", where + ASKED, "code")},
            stacked=True,
        ),
    ]  # fmt: skip


def model_variables(services: str) -> dict[str, str]:
    """Those of a dashboard about the models of ``services``, a regular expression."""
    return {
        "model": f'label_values(quintet_model_state{{service=~"{services}"}}, model)',
        "instance": f'label_values(quintet_model_state{{service=~"{services}"}}, instance)',
    }
