"""Root mean square norms, in the order and precision of transformers' models."""

from __future__ import annotations

from typing import Any

import torch

from quintet_chat.backends.layers.likeness import Different, alike


class Norm:
    """Scales ``[..., *weight.shape]`` to length and multiplies by the weight, per last dimension.

    A weight in float32 is multiplied before the result is rounded, any other after that.
    """

    def __init__(self, weight: torch.Tensor, epsilon: torch.Tensor) -> None:
        self.weight = weight
        self._epsilon = epsilon
        self._share = 1 / weight.shape[-1]
        self._wide = weight.dtype == torch.float32

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.addcmul(self._epsilon, length, length, value=self._share).rsqrt_()
        if self._wide:
            return wide.mul_(scale).mul_(self.weight).to(hidden.dtype)
        normed: torch.Tensor = self.weight * wide.mul_(scale).to(hidden.dtype)
        return normed

    def with_weight(self, weight: torch.Tensor) -> Norm:
        """Of other numbers; their type is what it was."""
        return Norm(weight, self._epsilon)


def unchanged(hidden: torch.Tensor) -> torch.Tensor:
    """What a norm is where there is none."""
    return hidden


@torch.inference_mode()
def norm_like(module: Any) -> Norm:
    """The norm that computes what ``module`` does. Raises Different where none of ours does."""
    weight = module.weight.detach().clone()
    epsilon = torch.tensor(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)
    # Away from zero, where a norm that takes the mean off would be nearly the same.
    probe = (1 + torch.randn(7, len(weight), generator=torch.Generator().manual_seed(0))).to(weight.dtype)
    theirs = module(probe)
    forms = (Norm(form, epsilon) for form in (weight, weight.float(), 1 + weight.float()))
    best = min(forms, key=lambda norm: float((norm(probe) - theirs).float().norm()))
    if not alike(best(probe), theirs):
        raise Different(f"a norm of another kind, {type(module).__name__}")
    return best
