"""The other side of run.py: the pipelines as diffusers has them, called and timed one lot of pictures at a time.

Reads lines ``MODEL SIZE STEPS EDIT NUMBER PICTURES`` and answers each with its CPU seconds.
"""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import torch
from diffusers import KolorsImg2ImgPipeline, KolorsPipeline
from PIL import Image
from quintet_vision.backends.device import quiet_libraries
from quintet_vision.backends.emoji64 import load_pipeline


def draw(pipes: dict[str, Any], model: str, size: int, steps: int, edit: bool, number: int) -> None:
    """One picture, to the last byte of its PNG."""
    call: dict[str, Any] = {
        "prompt": f"a cat and {number} dogs",
        "negative_prompt": "",
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(number),
    }
    if edit:
        page = Image.linear_gradient("L").convert("RGB").resize((size, size))
        call |= {"image": page, "strength": 0.6}
    elif model == "kolors":
        call |= {"width": size, "height": size}
    with torch.inference_mode():
        image = pipes["edit" if edit else model](**call).images[0]
    if image.width != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    image.save(io.BytesIO(), "PNG", compress_level=1)


def main() -> None:
    quiet_libraries()
    kolors = KolorsPipeline.from_pretrained(sys.argv[1])
    pipes = {"emoji-64": load_pipeline(), "kolors": kolors, "edit": KolorsImg2ImgPipeline.from_pipe(kolors)}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    for line in sys.stdin:
        model, *numbers = line.split()
        size, steps, edit, first, pictures = map(int, numbers)
        began = time.process_time()
        for number in range(first, first + pictures):
            draw(pipes, model, size, steps, bool(edit), number)
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main()
