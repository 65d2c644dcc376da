"""Where the parts of a pipeline live, so that a model fits into the GPU that is there.

Four ways, each slower and smaller than the one before:

    full     everything stays on the GPU
    int8     so it does, with the text encoders' weights in one byte each
    offload  int8, and each part is on the GPU only while it works; main memory holds them all
    layers   int8, and each layer is; a few GB are enough for anything, but it takes several times as long
"""

from __future__ import annotations

from typing import Any

import torch
from quintet_common.engine_args import Placement
from quintet_common.models_yml import ModelSpec
from quintet_common.packing import pack
from quintet_common.sizes import parse_bytes
from quintet_common.worker.host import LoadError

from quintet_vision.backends.int8 import quantise

WEIGHTS_SHARE = 0.8
"""Of the room, the most that weights may take; the rest is for pictures on their way."""


def choose(spec: ModelSpec, asked: Placement, device: torch.device, pipe: Any) -> Placement:
    """What ``engine_args`` has ``asked`` for; with ``auto``, the fastest that fits.

    It has to fit into ``memory`` of models.yml or, without that, into what is free on the GPU. Raises LoadError.
    """
    if device.type != "cuda":
        if asked in ("offload", "layers"):
            raise LoadError(f"engine_args: placement: {asked} needs a GPU; on the CPU there is full and int8.")
        return "int8" if asked == "int8" else "full"
    if asked == "auto":
        return fitting(_sizes(pipe), _room(spec, device))
    return asked


def fitting(sizes: dict[str, int], room: int) -> Placement:
    """The fastest placement of components of ``sizes`` bytes, by name, within ``room`` bytes."""
    limit = room * WEIGHTS_SHARE
    if sum(sizes.values()) <= limit:
        return "full"
    small = {name: size // 2 if _reads_text(name) else size for name, size in sizes.items()}
    if sum(small.values()) <= limit:
        return "int8"
    return "offload" if max(small.values()) <= limit else "layers"


def place(pipe: Any, device: torch.device, placement: Placement) -> None:
    """Put ``pipe``, which is in main memory, where it is to live."""
    if placement != "full":
        for name, part in parts(pipe).items():
            if _reads_text(name):
                quantise(part)
    if placement == "offload":
        pipe.enable_model_cpu_offload(device=device)
    elif placement == "layers":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    if device.type == "cpu" and hasattr(pipe, "transformer"):  # UNets have few linear layers: it gains them nothing
        pack(pipe.transformer, wanted=lambda path: "lora_" not in path)


def parts(pipe: Any) -> dict[str, torch.nn.Module]:
    """The networks of ``pipe``."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _reads_text(name: str) -> bool:
    return name.startswith("text_encoder")


def _sizes(pipe: Any) -> dict[str, int]:
    return {name: sum(each.nbytes for each in part.parameters()) for name, part in parts(pipe).items()}


def _room(spec: ModelSpec, device: torch.device) -> int:
    if (amount := spec.memory.get(device.index or 0)) is not None:
        try:
            return parse_bytes(amount)
        except ValueError as error:
            raise LoadError(f"memory: {error}") from None
    free, _ = torch.cuda.mem_get_info(device)
    return free
