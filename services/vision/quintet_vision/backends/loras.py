"""LoRAs of one model: found in a folder, loaded beside its weights, chosen by each request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from quintet_common.worker.host import LoadError

Wanted = tuple[tuple[str, float], ...]
"""Names and weights."""


class Loras:
    """``NAME.safetensors`` and ``NAME/*.safetensors`` in ``folder`` are the LoRAs of ``pipe``, by NAME."""

    def __init__(self, pipe: Any, folder: str | None) -> None:
        """Raises LoadError that names a file which is no LoRA for this model."""
        self._pipe = pipe
        self._adapters: dict[str, str] = {}
        self._active: Wanted = ()
        if folder is None:
            return
        if not hasattr(pipe, "load_lora_weights"):
            raise LoadError(f"engine_args: loras: {type(pipe).__name__} takes no LoRAs.")
        for number, (name, file) in enumerate(sorted(_found(Path(folder)).items())):
            adapter = f"lora{number}"  # names of adapters become names of modules, which may hold no dot
            try:
                pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=adapter)
            except Exception as error:
                raise LoadError(f"{file}: cannot be loaded as a LoRA of {type(pipe).__name__}: {error}") from error
            if adapter not in {each for names in pipe.get_list_adapters().values() for each in names}:
                raise LoadError(f"{file}: nothing in it is for {type(pipe).__name__}.")
            self._adapters[name] = adapter
        if self._adapters:
            pipe.disable_lora()

    @property
    def names(self) -> list[str]:
        return list(self._adapters)

    def use(self, wanted: Wanted) -> None:
        """Let exactly ``wanted`` work in the pictures that are drawn next."""
        if wanted == self._active:
            return
        with torch.inference_mode():  # weights that moved while a picture was drawn take no settings outside
            if wanted:
                self._pipe.enable_lora()
                self._pipe.set_adapters([self._adapters[name] for name, _ in wanted], [weight for _, weight in wanted])
            else:
                self._pipe.disable_lora()
        self._active = wanted


def _found(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise LoadError(f"engine_args: loras: {folder}: no such folder.")
    files = {file.stem: file for file in folder.glob("*.safetensors")}
    for inner in folder.iterdir():
        inside = sorted(inner.glob("*.safetensors")) if inner.is_dir() else []
        if len(inside) > 1:
            raise LoadError(f"engine_args: loras: {inner} has {len(inside)} .safetensors files; a LoRA is one.")
        if inside:
            files[inner.name] = inside[0]
    return files
