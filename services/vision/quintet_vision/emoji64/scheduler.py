"""Sampling for networks that predict the clean picture along a straight path from noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor


@dataclass
class StepOutput:
    prev_sample: Tensor
    """The sample at the next time."""
    pred_original_sample: Tensor
    """The picture that the network sees in it now."""


class CleanPredictionFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """Euler steps of rectified flow (Liu et al., 2022) from x-predictions.

    The path is ``x(t) = t * picture + (1 - t) * noise``, t from 0 to 1, so its velocity is ``(picture - x) / (1 - t)``.
    ``min_distance`` bounds the division near the end. With ``finish_clean`` the last step takes the predicted picture
    as it is; without, a bounded Euler step leaves up to a sixth of the last noise as grain.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, min_distance: float = 0.05, finish_clean: bool = True) -> None:  # noqa: ARG002  # kept in self.config
        self.timesteps = torch.zeros(0)
        self._times: list[float] = []

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Divide the path into equal steps; ``timesteps`` are their starts."""
        times = torch.linspace(0, 1, num_inference_steps + 1)
        self._times = times.tolist()
        self.timesteps = times[:-1].to(device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | float) -> Tensor:
        """The point of the path at ``timesteps``, 0 to 1."""
        return timesteps * original_samples + (1 - timesteps) * noise

    def step(self, model_output: Tensor, index: int, sample: Tensor) -> StepOutput:
        """From time ``index`` to the next; ``model_output`` is the predicted picture."""
        now, then = self._times[index], self._times[index + 1]
        if self.config.finish_clean and index + 2 == len(self._times):
            return StepOutput(model_output, model_output)
        velocity = (model_output - sample) / max(1 - now, self.config.min_distance)
        return StepOutput(sample + velocity * (then - now), model_output)

    def time_after(self, index: int) -> float:
        return self._times[index + 1]
