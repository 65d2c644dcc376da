"""From a folder or hub id to diffusers pipelines, one for each task, that share one set of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from quintet_common.worker.host import LoadError, Report

from quintet_vision.backends.qwen_pictures import processor_for
from quintet_vision.protocol import Task


def load(path: str, dtype: torch.dtype, report: Report, pickles: bool = False) -> Any:
    """The pipeline that the folder or hub id is of, in main memory. Raises LoadError.

    With ``pickles``, weights may also be pickles, of which plain tensors are read.
    """
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image

    if path.startswith("/") and not Path(path).is_dir():
        raise LoadError(f"{path}: no such folder.")
    given = {"dtype": dtype, "use_safetensors": None if pickles else True, **processor_for(path)}
    with _components_reported(report):
        # Some models only edit, and some folders hold their weights under the name of a variant alone.
        attempts: list[tuple[Any, dict[str, str]]] = [
            (kind, variant)
            for variant in ({}, {"variant": "fp16"})
            for kind in (AutoPipelineForText2Image, AutoPipelineForImage2Image)
        ]
        reasons = []
        for kind, variant in attempts:
            try:
                pipe = kind.from_pretrained(path, **given, **variant)
            except (OSError, ValueError) as error:
                reasons.append(error)
                continue
            pipe.set_progress_bar_config(disable=True)
            return pipe
    if not pickles and "safetensors" in str(reasons[0]):
        raise LoadError(
            f"{path}: parts of it have no *.safetensors, and pickles are off unless its entry says "
            "engine_args: {pickled_weights: true}; they are read as plain tensors then."
        ) from reasons[0]
    raise LoadError(f"{path}: diffusers cannot load it: {reasons[0]}") from reasons[0]


def for_tasks(pipe: Any) -> dict[Task, Any]:
    """``pipe`` and its relatives for other tasks, which hold the same networks."""
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

    kinds: list[tuple[Task, Any]] = [
        ("text-to-image", AutoPipelineForText2Image),
        ("image-to-image", AutoPipelineForImage2Image),
        ("inpainting", AutoPipelineForInpainting),
    ]
    pipes: dict[Task, Any] = {}
    for task, kind in kinds:
        try:
            relative = kind.from_pipe(pipe)
        except ValueError:  # diffusers has no such pipeline for this family
            continue
        pipes[task] = pipe if type(relative) is type(pipe) else relative
        pipes[task].set_progress_bar_config(disable=True)
    return pipes


@contextmanager
def _components_reported(report: Report) -> Iterator[None]:
    """While diffusers loads a pipeline, turn its progress bar over the components into reports."""
    from diffusers.utils import logging

    bar = logging.tqdm

    def reporting(items: Any, *_: Any, **__: Any) -> Iterator[Any]:
        parts = list(items)
        for number, part in enumerate(parts):
            report(0.1 + 0.8 * number / len(parts), f"loading {part[0]}" if isinstance(part, tuple) else "loading")
            yield part

    logging.tqdm = reporting
    try:
        yield
    finally:
        logging.tqdm = bar
