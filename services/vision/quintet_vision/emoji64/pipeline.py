"""emoji-64 as a diffusers pipeline: text to image, image to image, and edits under a mask, always at 64x64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from quintet_vision.emoji64.scheduler import CleanPredictionFlowScheduler
from quintet_vision.emoji64.transformer import Emoji64Transformer
from quintet_vision.emoji64.words import to_english

GUIDED = 0.6
"""The part of the path, from noise, in which prompts guide; what comes after is as well without, for half the work."""

StepCallback = Callable[["Emoji64Pipeline", int, float, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class _Text:
    """What the pictures shall be led to, and away from; states are (batch, tokens, width)."""

    wanted: Tensor
    unwanted: Tensor
    guidance: float
    until: float


class Emoji64Pipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not typed
    """Pictures of single things, as emoji draw them.

    ``text_encoder`` and ``tokenizer`` are those of all-MiniLM-L6-v2, frozen in training. They are optional parts of
    the folder: pass them to ``from_pretrained`` where it has none.
    """

    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012  # diffusers declares it without ClassVar
    model_cpu_offload_seq = "text_encoder->transformer"
    _callback_tensor_inputs = ["latents", "prediction"]  # noqa: RUF012

    def __init__(
        self,
        transformer: Emoji64Transformer,
        scheduler: CleanPredictionFlowScheduler,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self._interrupt = False

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Text states (batch, tokens, width), zero at padding. Words past the network's token count are dropped."""
        tokens = self.tokenizer(
            [to_english(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.transformer.config.text_tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self._execution_device)
        states: Tensor = self.text_encoder(**tokens).last_hidden_state
        masked: Tensor = states * tokens["attention_mask"][..., None]
        return masked

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        image: Image.Image | Sequence[Image.Image] | None = None,
        mask_image: Image.Image | Sequence[Image.Image] | None = None,
        strength: float = 0.7,
        num_inference_steps: int = 16,
        guidance_scale: float = 2.5,
        guidance_until: float = GUIDED,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw one picture per prompt.

        With ``image`` the path starts ``1 - strength`` of the way to it; with ``mask_image`` too, only what is white
        in the mask changes. Both are resized to 64x64 as they are. Guidance ends at time ``guidance_until``, 0 to 1:
        later it only adds grain (Kynkaanniemi et al., "Applying Guidance in a Limited Interval", 2024) and costs a
        second pass. ``generator`` is one, or one per picture: then a
        picture does not depend on what else is in the batch. ``callback_on_step_end(pipe, step, time, tensors)`` gets
        ``latents`` and ``prediction`` after each step and may set ``pipe._interrupt``. ``output_type``: pil, np or pt.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        if len(negatives) != len(prompts):
            raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
        states = self.encode_prompt([*prompts, *negatives])
        wanted, unwanted = (part.repeat_interleave(num_images_per_prompt, 0) for part in states.chunk(2))
        noise = self._noise(len(wanted), generator)
        known = None if image is None else self._pixels(image, len(noise), "RGB") * 2 - 1
        mask = None if mask_image is None else (self._pixels(mask_image, len(noise), "L") > 0.5).to(noise)
        if mask is not None and known is None:
            raise ValueError("mask_image needs image")
        self._interrupt = False
        picture = self._run(
            noise,
            _Text(wanted, unwanted, guidance_scale, guidance_until),
            known,
            mask,
            strength,
            num_inference_steps,
            callback_on_step_end,
        )
        images = self.output_images(picture, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _run(
        self,
        noise: Tensor,
        text: _Text,
        known: Tensor | None,
        mask: Tensor | None,
        strength: float,
        steps: int,
        callback: StepCallback | None,
    ) -> Tensor:
        self.scheduler.set_timesteps(steps, self._execution_device)
        times = self.scheduler.timesteps
        first = steps - max(1, min(steps, int(steps * strength))) if known is not None else 0
        latents = noise if known is None else self.scheduler.add_noise(known, noise, times[first])
        for index in self.progress_bar(range(first, steps)):
            prediction = self._predict(latents, times[index], text)
            latents = self.scheduler.step(prediction, index, latents).prev_sample
            if known is not None and mask is not None:
                kept = self.scheduler.add_noise(known, noise, self.scheduler.time_after(index))
                latents = mask * latents + (1 - mask) * kept
            if callback is not None:
                tensors = {"latents": latents, "prediction": prediction}
                latents = (callback(self, index - first, float(times[index]), tensors) or {}).get("latents", latents)
            if self._interrupt:
                break
        return latents

    def _predict(self, latents: Tensor, time: Tensor, text: _Text) -> Tensor:
        """The clean picture, with classifier-free guidance (Ho and Salimans, 2022) in the first part of the path."""
        if text.guidance == 1 or float(time) >= text.until:
            return self.transformer(latents, time.expand(len(latents)), text.wanted)  # type: ignore[no-any-return]
        both = self.transformer(
            torch.cat([latents, latents]), time.expand(2 * len(latents)), torch.cat([text.wanted, text.unwanted])
        )
        with_text, without = both.chunk(2)
        return without + text.guidance * (with_text - without)  # type: ignore[no-any-return]

    def _noise(self, count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
        size = self.transformer.config.sample_size
        if generator is None or isinstance(generator, torch.Generator):
            noise = torch.randn(count, 3, size, size, generator=generator)
        elif len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} pictures")
        else:
            noise = torch.cat([torch.randn(1, 3, size, size, generator=each) for each in generator])
        return noise.to(self._execution_device)

    def _pixels(self, images: Image.Image | Sequence[Image.Image], count: int, mode: str) -> Tensor:
        """(count, channels, size, size) in 0 to 1."""
        each = [images] if isinstance(images, Image.Image) else list(images)
        if count % len(each):
            raise ValueError(f"{len(each)} images for {count} pictures")
        side = self.transformer.config.sample_size
        arrays = [np.asarray(one.convert(mode).resize((side, side), Image.Resampling.LANCZOS)) for one in each]
        pixels = torch.from_numpy(np.stack(arrays)).to(self._execution_device) / 255
        pixels = pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2)
        return pixels.repeat_interleave(count // len(each), 0)

    def output_images(self, picture: Tensor, output_type: str) -> Any:
        """Pictures of -1 to 1 as pil, np (batch, height, width, 3) or pt (batch, 3, height, width) of 0 to 1."""
        picture = _whitened((picture.clamp(-1, 1) + 1) / 2)
        if output_type == "pt":
            return picture
        array = picture.permute(0, 2, 3, 1).float().cpu().numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)


def _whitened(picture: Tensor) -> Tensor:
    """``picture`` (0 to 1) with what is nearly white made white: backgrounds come out of the network a shade off."""
    lightness = picture.amin(1, keepdim=True)
    ramp = ((lightness - 0.94) / 0.03).clamp(0, 1)
    return picture + (1 - picture) * ramp
