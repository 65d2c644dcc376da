"""Why a model that was loaded cannot be run."""

from __future__ import annotations

from typing import Any

from quintet_common.models_yml import ModelSpec

_INPUTS, _OUTPUTS = 64, 32
"""What bitsandbytes' kernels for int4 divide a layer's sides by."""


def reason(spec: ModelSpec, model: Any, error: Exception) -> str:
    """A line for a person about what a trial of ``model`` ended with: UnsupportedModel, or bitsandbytes'
    AssertionError about shapes that its kernels do not take."""
    asked = spec.engine_args.get("quantization")
    fault = error.__cause__ or error
    if asked is not None and (error.__cause__ is not None or isinstance(error, AssertionError)):
        said = (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")
        return (
            f"{spec.id}: its layers cannot be computed with engine_args: quantization: {asked}: {said}."
            f"{_odd(model) if asked == 'int4' else ''} Leave quantization out."
        )
    if asked is not None:
        advice = "Try int4, or none" if asked == "int8" else "Leave it out"
        return f"{spec.id}: engine_args: quantization: {asked} changes too much: {error}. {advice}."
    if isinstance(error, AssertionError):
        return f"{spec.id}: its layers cannot be computed: {error}."
    kind = model.config.get_text_config().model_type
    return f"{spec.id}: the architecture {kind!r} cannot be batched: {error}."


def _odd(model: Any) -> str:
    """The first layer whose sides int4 does not take, in words."""
    for name, layer in model.named_modules():
        if type(layer).__name__ == "Linear4bit" and (layer.in_features % _INPUTS or layer.out_features % _OUTPUTS):
            return (
                f" int4 needs inputs in multiples of {_INPUTS} and outputs in multiples of {_OUTPUTS}; {name} has "
                f"{layer.in_features} and {layer.out_features}."
            )
    return ""
