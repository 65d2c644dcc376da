"""Weights of fewer bits: quantised by bitsandbytes on the way, or in the files already."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import torch
from quintet_common import checkpoint
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from transformers import BitsAndBytesConfig, CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from quintet_chat.backends import gptq

_EXPANDED = {"compressed-tensors": CompressedTensorsConfig, "fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
assert _EXPANDED.keys() == checkpoint.EXPANDED

_SEEING = ["lm_head", "vision", r"model\.(?!(language_model|text_model|layers)\.).*"]
"""What stays whole of a model that sees: all but the layers that read. Eyes are small, and their shapes unusual."""


def method(spec: ModelSpec, config: Any) -> str | None:
    """What ``/v1/models`` says of it: ``int8`` and ``int4`` are done at load, all others are those of config.json."""
    return spec.engine_args.get("quantization") or checkpoint.method(config.to_dict())


def arguments(spec: ModelSpec, config: Any, dtype: torch.dtype) -> dict[str, Any]:
    """For ``from_pretrained``. Raises LoadError for a method that transformers does not know."""
    asked, stored = spec.engine_args.get("quantization"), checkpoint.method(config.to_dict())
    # It warns of each matrix product in bfloat16 that int8 has float16 in it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    whole = _SEEING if hasattr(config, "vision_config") else None
    if asked == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)}
    if asked == "int4":
        settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype, "llm_int8_skip_modules": whole}
        return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **settings)}
    if stored == "gptq" and checkpoint.has_experts(config.to_dict()):
        return {"config": _named(config)}
    if stored in _EXPANDED:
        warnings.filterwarnings("ignore", "You passed `quantization_config`")  # to say how the file's own is read
        return {"quantization_config": _EXPANDED[stored](dequantize=True)}
    if stored not in {None, "bitsandbytes", *AUTO_QUANTIZER_MAPPING}:
        raise LoadError(
            f"{spec.id}: its weights are quantised by {stored}, which transformers does not know. "
            "vLLM may: engine: vllm."
        )
    return {}


def _named(config: Any) -> Any:
    """``config`` with the name by which transformers finds our reading of its weights."""
    ours = copy.deepcopy(config)
    ours.quantization_config = checkpoint.settings(config.to_dict()) | {"quant_method": gptq.METHOD}
    return ours


def finish(model: Any, config: Any, dtype: torch.dtype) -> None:
    """Give the layers of a quantised checkpoint that are not quantised the type asked for: they have the file's."""
    if checkpoint.method(config.to_dict()) is None:
        return
    exact = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and exact.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
