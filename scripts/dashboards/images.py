"""The dashboard images: pictures."""

from __future__ import annotations

from grafana import Board, Panel
from shared import ASKED, model_panels, model_variables, quantiles, rate

WHERE = 'service="vision", instance=~"$instance", model=~"$model"'
pictures = [
    Panel(
        "Pictures", "short", "Drawn in a minute.",
        {"{{model}}": "60 * " + rate("quintet_images_total", WHERE, "model")},
    ),
    Panel(
        "Work", "short",
        "Millions of pixels times steps in a second: the hardware's speed, whatever sizes are asked for. If it "
        "falls while requests wait, see the GPU's clocks.",
        {"{{model}}": rate("quintet_image_megapixel_steps_total", WHERE, "model")},
    ),
    Panel(
        "Work per picture", "short",
        "Millions of pixels times steps. When it grows, people ask for larger pictures or more steps: limit them "
        "with max_pixels and max_steps.",
        {"{{model}}": f"{rate('quintet_image_megapixel_steps_total', WHERE, 'model')}"
         f" / ({rate('quintet_images_total', WHERE, 'model')} > 0)"},
    ),
    Panel(
        "Time to the first picture", "s",
        "Also a partial one, where the client asked for these.",
        quantiles("quintet_time_to_first_output_seconds", WHERE),
    ),
    Panel(
        "Latency", "s", "From arrival to the last picture of the request.",
        quantiles("quintet_e2e_request_latency_seconds", WHERE + ASKED, "endpoint", (0.5, 0.95)),
    ),
]  # fmt: skip
BOARD = Board(
    "images", "Quintet / Images", {"Pictures": pictures, "Models": model_panels(WHERE)}, model_variables("vision")
)
