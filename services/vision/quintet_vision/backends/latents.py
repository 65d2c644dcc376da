"""Between a pipeline's latents and pictures: what is seen of unfinished ones, and edits under a mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from quintet_vision.canvas import Size


def decoded(pipe: Any, latents: Tensor, size: Size) -> list[Image.Image]:
    """Unfinished pictures of ``size`` pixels, as the autoencoder sees their latents now."""
    vae = pipe.vae
    if latents.dim() == 3:  # patches in a row, as transformers have them
        latents = pipe._unpack_latents(latents, size[1], size[0], pipe.vae_scale_factor)
    dtype = torch.float32 if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False) else vae.dtype
    with torch.inference_mode(), _as_type(vae, dtype):
        pixels = vae.decode(_unscaled(latents, vae.config).to(dtype), return_dict=False)[0]
    if pixels.dim() == 5:  # an autoencoder for films; a picture is one frame
        pixels = pixels[:, :, 0]
    images: list[Image.Image] = pipe.image_processor.postprocess(pixels.detach().float(), output_type="pil")
    return images


def _unscaled(latents: Tensor, config: Any) -> Tensor:
    """Latents in the autoencoder's own range; diffusers has three ways to write down how they were changed."""
    latents = latents / (getattr(config, "scaling_factor", None) or 1)
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and deviation is not None:
        shape = (1, -1) + (1,) * (latents.dim() - 2)
        return latents * latents.new_tensor(deviation).view(shape) + latents.new_tensor(mean).view(shape)
    return latents + (getattr(config, "shift_factor", None) or 0)


@contextmanager
def _as_type(vae: Any, dtype: torch.dtype) -> Iterator[None]:
    own = vae.dtype
    if own != dtype:
        vae.to(dtype)
    try:
        yield
    finally:
        if own != dtype:
            vae.to(own)


class Blend:
    """Edits under a mask by a pipeline for whole pictures: after each step, what may not change is put back.

    That is the known picture with as much noise as the step has left (Avrahami et al., "Blended Latent Diffusion",
    2023). Its latents and noise are those that the pipeline itself starts from, taken from its scheduler.
    """

    def __init__(self, scheduler: Any, masks: list[Image.Image]) -> None:
        """``masks``: L, white where the picture may change, as large as what the network computes."""
        self._scheduler = scheduler
        self._masks = torch.stack([torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255) for mask in masks])
        self._known: Tensor | None = None
        self._noise: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the pipeline runs: note what it begins with."""
        add_noise = self._scheduler.add_noise

        def noted(known: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            self._known, self._noise = known, noise
            start: Tensor = add_noise(known, noise, timesteps)
            return start

        self._scheduler.add_noise = noted
        try:
            yield
        finally:
            del self._scheduler.add_noise  # what it covered is the class's

    def after_step(self, time: Any, latents: Tensor) -> Tensor:
        """``latents`` after the step at ``time``, with what may not change put back."""
        if self._known is None or self._noise is None:
            raise RuntimeError("the pipeline began without adding noise to a picture")
        mask = functional.interpolate(self._masks[:, None], latents.shape[-2:], mode="area").to(latents)
        times = self._scheduler.timesteps
        following = int((times == time).nonzero()[-1]) + 1
        kept = self._known
        if following < len(times):
            noisy = type(self._scheduler).add_noise
            kept = noisy(self._scheduler, kept, self._noise, times[following].expand(len(kept)))
        return mask * latents + (1 - mask) * kept.to(latents)
