"""The dashboard speech: sound."""

from __future__ import annotations

from grafana import Board, Panel
from shared import AMBER, ASKED, RED, model_panels, model_variables, quantiles, rate

WHERE = 'service="tts", instance=~"$instance", model=~"$model"'
sound = [
    Panel(
        "Sound made", "short", "Seconds of it in a second: so many listeners could be served at once.",
        {"{{model}}": rate("quintet_audio_seconds_total", WHERE, "model")},
    ),
    Panel(
        "Text spoken", "short", "Characters in a second.",
        {"{{model}}": rate("quintet_characters_total", WHERE, "model")},
    ),
    Panel(
        "Work for a second of sound", "s",
        "Near 1 s streams stutter: fewer requests at a time, more CPU, or a GPU.",
        quantiles("quintet_real_time_factor", WHERE, "model", (0.5, 0.95)), steps=[(0.8, RED)],
    ),
    Panel(
        "Time to the first sound", "s", "What listeners wait for. Above 1 s see the time in the queue.",
        quantiles("quintet_time_to_first_output_seconds", WHERE), steps=[(1, AMBER)],
    ),
    Panel(
        "Latency", "s", "From arrival to the last byte. Long texts take long.",
        quantiles("quintet_e2e_request_latency_seconds", WHERE + ASKED, "endpoint", (0.5, 0.95)),
    ),
]  # fmt: skip
BOARD = Board("speech", "Quintet / Speech", {"Sound": sound, "Models": model_panels(WHERE)}, model_variables("tts"))
