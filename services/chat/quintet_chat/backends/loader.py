"""Loading a language or image-text model with transformers: from a directory, a hub id, or the embedded wheel."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from msgspec.structs import replace
from quintet_common import checkpoint, folder
from quintet_common.devices import bfloat16_pays, pick_device
from quintet_common.engine_args import Transformers
from quintet_common.errors import ApiError
from quintet_common.footprint import in_words
from quintet_common.memory import give_back
from quintet_common.models_yml import ModelSpec
from quintet_common.sizes import parse_bytes
from quintet_common.worker.host import LoadError, Report, settings
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils.hub import cached_file

from quintet_chat.backends import chatglm, embedded, families, layers, memory, packing, quantized, refusal, templates
from quintet_chat.backends.glm4v_pictures import Glm4vProcessor, Glm4vReader
from quintet_chat.backends.positions import settle_factors
from quintet_chat.backends.time_steps import settle_limits
from quintet_chat.engine import trial
from quintet_chat.engine.pictures import PictureReader
from quintet_chat.engine.prefix import BLOCK, SPAN, Room, room_in
from quintet_chat.engine.runner import Runner, UnsupportedModel

log = logging.getLogger("quintet.chat")
PREFILL_CHUNK = {"cpu": 256, "cuda": 2048}
"""Prompt tokens computed between two decode steps: as many as delay a running answer about as long as a few tokens."""

_FAILURES = (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError, UnpicklingError, SafetensorError)


@dataclass
class LoadedModel:
    """A model ready to generate, and what the engine must know of it."""

    runner: Runner
    tokenizer: Any
    context: int
    """Prompt and answer together, in tokens."""
    vocabulary: int
    """The width of the logits; at least the tokenizer's size."""
    eos: frozenset[int]
    chunk: int
    prefixes: Room
    """What the prefix cache keeps."""
    reader: PictureReader | None
    """For a model that takes pictures."""
    info: dict[str, Any]
    """For ``/v1/models``; see ``quintet_chat.protocol``."""


def load(spec: ModelSpec, max_batch: int, report: Report) -> LoadedModel:
    """Load and warm up the model of ``spec``; ``max_batch`` sequences will run together.

    ``engine_args`` may hold what ``quintet_common.engine_args.Transformers`` has. Raises LoadError with a line for a
    person.
    """
    settings(spec, Transformers)
    transformers.utils.logging.disable_progress_bar()
    # Or it would ask a service on the hub to convert a repository that has none but pickled weights.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    path = _path(spec, report)
    report(0.42, "reading the configuration")
    original = _original(spec, path)
    trusted = original is None and _trusts(spec)
    read: Any = original.config if original else partial(AutoConfig.from_pretrained, path, trust_remote_code=trusted)
    config = _attempt(spec, "its configuration cannot be read", read)
    # Of a repository that is seen for the first time, ``engine: auto`` could not know that it is for vLLM.
    if problem := checkpoint.obstacle(replace(spec, engine="transformers"), config.to_dict()):
        raise LoadError(problem)
    report(0.45, "loading the tokenizer")
    read = original.tokenizer if original else partial(AutoTokenizer.from_pretrained, path, trust_remote_code=trusted)
    tokenizer = _attempt(spec, "its tokenizer cannot be loaded", read)
    seeing = original.processor(tokenizer) if original else _processor(spec, path, config)
    if seeing is not None:
        tokenizer = seeing.tokenizer
        tokenizer.chat_template = seeing.chat_template or tokenizer.chat_template
    elif spec.kind == "multimodal":
        raise LoadError(f"{spec.id}: {folder.text_only(str(config.model_type))}")
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():
        raise LoadError(f"{spec.id}: its tokenizer knows no words: tokenizer.json, or what stands for it, is missing.")
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = templates.in_openai_form(tokenizer.chat_template)
    report(0.55, "loading the weights")
    read = partial(original.model, config) if original else _reading(spec, path, config)
    model = _load_weights(spec, config, read)
    report(0.9, "warming up")
    loaded = _warm_up(spec, model, tokenizer, seeing, max_batch)
    if (method := quantized.method(spec, config)) is not None:
        loaded.info["quantization"] = method
    layers.fuse(model)
    packing.finish(model, loaded.runner.check)  # last: a packed model no longer knows the size of its weights
    loaded.runner.slots.release()
    give_back()
    return loaded


def _trusts(spec: ModelSpec) -> bool:
    """Whether Python code that comes with the model may be run."""
    if not spec.engine_args.get("trust_remote_code", False):
        return False
    log.warning("%s: trust_remote_code is on: Python code that comes with the model is run.", spec.id)
    return True


def _path(spec: ModelSpec, report: Report) -> str:
    if spec.embedded is not None:
        return str(embedded.directory(spec.embedded, report))
    if spec.path.endswith(".gguf"):
        raise LoadError(f"{spec.id}: a GGUF file cannot be loaded; give a directory in the transformers layout.")
    if Path(spec.path).is_absolute() and not Path(spec.path).is_dir():
        raise LoadError(f"{spec.id}: there is no directory {spec.path}.")
    return spec.path


def _original(spec: ModelSpec, path: str) -> chatglm.ChatGlm | None:
    """The model at ``path`` when its layout is one that we convert, and transformers does not know."""
    if Path(path).is_dir():
        return chatglm.find(spec.id, Path(path))
    file = _attempt(spec, "its configuration cannot be read", partial(cached_file, path, "config.json"))
    if chatglm.find(spec.id, Path(file).parent) is None:
        return None
    fetch = partial(snapshot_download, path, allow_patterns=chatglm.FILES)
    return chatglm.find(spec.id, Path(_attempt(spec, "its files cannot be fetched", fetch)))


def _attempt(spec: ModelSpec, what: str, do: Callable[[], Any]) -> Any:
    """``do()``, with any failure as a LoadError that says ``what`` went wrong."""
    try:
        return do()
    except _FAILURES as error:
        log.info("loading %s failed", spec.id, exc_info=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LoadError(f"{spec.id}: {_known(spec, error) or f'{what}: {reason}'}") from None


def _known(spec: ModelSpec, error: Exception) -> str | None:
    """What to do about an error of transformers that speaks of its arguments, in terms of models.yml."""
    if "trust_remote_code" in str(error) and not spec.engine_args.get("trust_remote_code", False):
        return (
            "it comes with Python code of its own, which is not run unless its entry says "
            "engine_args: {trust_remote_code: true}; only for models that you trust."
        )
    if "use_safetensors=True" in str(error):
        return checkpoint.not_read("no *.safetensors")
    if isinstance(error, UnpicklingError):
        return "its weights are pickles with more in them than plain tensors, which is not read."
    return None


def _auto_class(config: Any) -> Any:
    """The class of transformers that loads the model: with its eyes, if it has any."""
    return AutoModelForImageTextToText if _has_eyes(config) else AutoModelForCausalLM


def _has_eyes(config: Any) -> bool:
    return type(config) in AutoModelForImageTextToText._model_mapping


def _processor(spec: ModelSpec, path: str, config: Any) -> Any:
    """The processor of an image-text model. One of kind ``chat`` that has none that works is served for text alone."""
    if not _has_eyes(config):
        return None
    from quintet_chat.backends import processor  # takes seconds to import, which text models need not wait for

    try:
        return _attempt(spec, "its processor cannot be loaded", partial(processor.load, path, config))
    except LoadError as error:
        if spec.kind == "multimodal":
            raise
        log.warning("%s. It takes text only.", str(error).rstrip("."))
        return None


def _reader(spec: ModelSpec, runner: Runner, model: Any, seeing: Any) -> PictureReader | None:
    """What puts pictures into prompts, tried with one: like ``_processor``, kind ``chat`` can do without."""
    if seeing is None:
        return None
    try:
        kind = Glm4vReader if isinstance(seeing, Glm4vProcessor) else PictureReader
        reader = kind(seeing, model)
        prompt, pictures, inputs = reader.trial()
        runner.check_pictures(prompt, pictures, inputs)
    except (UnsupportedModel, ApiError, *_FAILURES) as error:
        log.info("the pictures of %s", spec.id, exc_info=True)
        message = f"{spec.id}: pictures cannot be batched: {error}."
        if spec.kind == "multimodal":
            raise LoadError(message) from None
        log.warning("%s It takes text only.", message)
        return None
    return reader


def _reading(spec: ModelSpec, path: str, config: Any) -> Callable[..., Any]:
    """What reads the weights with transformers: of pickles, which must have been allowed, plain tensors alone."""
    pickles = spec.engine_args.get("pickled_weights", False)
    if pickles:
        log.warning("%s: pickled_weights is on: if its weights are pickles, plain tensors are read of them.", spec.id)
    return partial(
        _auto_class(config).from_pretrained,
        path,
        use_safetensors=None if pickles else True,
        weights_only=True,
        trust_remote_code=spec.engine_args.get("trust_remote_code", False),
    )


def _brings_its_class(spec: ModelSpec, config: Any) -> bool:
    """Whether the model's class is in the code that comes with it, and may be run."""
    trusted = spec.engine_args.get("trust_remote_code", False)
    return trusted and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _load_weights(spec: ModelSpec, config: Any, from_pretrained: Callable[..., Any]) -> Any:
    if type(config) not in _auto_class(config)._model_mapping and not _brings_its_class(spec, config):
        raise LoadError(f"{spec.id}: {config.model_type!r} is no architecture of a text model that can be loaded.")
    device = pick_device(spec)
    dtype = _dtype(spec.dtype, device)
    arguments: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    arguments |= quantized.arguments(spec, config, dtype)
    if limits := _limits(spec, device):
        arguments |= {"device_map": "auto", "max_memory": limits}
    elif device.type != "cpu" or quantized.method(spec, config):  # that would otherwise go to a GPU if there is one
        arguments["device_map"] = device
    if "device_map" in arguments and importlib.util.find_spec("accelerate") is None:
        raise LoadError(f"{spec.id}: the package 'accelerate' is needed to place a model on devices.")
    model, seen = _attempt(spec, "its weights cannot be loaded", partial(from_pretrained, **arguments))
    if "disk" in getattr(model, "hf_device_map", {}).values():
        raise LoadError(f"{spec.id}: {_too_large(model, limits)}")
    if missing := sorted(seen["missing_keys"]):
        raise LoadError(f"{spec.id}: {len(missing)} weights are missing from its files, the first is {missing[0]!r}.")
    quantized.finish(model, config, dtype)
    settle_limits(model)
    return model.eval()


def _too_large(model: Any, limits: dict[int | str, str]) -> str:
    size, granted = model.get_memory_footprint(), sum(map(parse_bytes, limits.values()))
    figures = f"its weights need {in_words(size)}, memory grants {in_words(granted)}"
    return f"it does not fit into the memory that models.yml grants it: {figures}."


def _limits(spec: ModelSpec, device: torch.device) -> dict[int | str, str]:
    """``memory``, so far as it counts: what GPUs may hold says nothing where the model runs on the CPU."""
    return {where: limit for where, limit in spec.memory.items() if device.type != "cpu" or where == "cpu"}


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    return torch.bfloat16 if bfloat16_pays(device) else torch.float32


def _warm_up(spec: ModelSpec, model: Any, tokenizer: Any, seeing: Any, max_batch: int) -> LoadedModel:
    """Run the model once, which shows that it runs and how large its cache is; then set the limits."""
    config = model.config.get_text_config()
    longest = int(getattr(config, "max_position_embeddings", None) or 2048)
    try:
        runner = Runner(model, max_batch, longest, cells=longest)
        runner.check()
    except (UnsupportedModel, AssertionError) as error:
        raise LoadError(refusal.reason(spec, model, error)) from None
    reader = _reader(spec, runner, model, seeing)
    trial.settle(runner)
    weights = model.get_memory_footprint()
    per_row, per_token = runner.slots.bytes_per_row, runner.slots.bytes_per_token
    runner.slots.release()
    give_back()  # on a GPU what is free is measured
    room, prefixes = memory.shares(spec, runner.device, weights)
    context = _context(spec, longest, room - per_row, per_token)
    runner.slots.cells = room // per_token
    runner.slots.longest = context
    settle_factors(model, context)
    eos = _eos(model, tokenizer)
    return LoadedModel(
        runner=runner,
        tokenizer=tokenizer,
        context=context,
        vocabulary=config.vocab_size,
        eos=eos,
        chunk=spec.engine_args.get("prefill_chunk") or PREFILL_CHUNK.get(runner.device.type, 1024),
        prefixes=_prefix_room(spec, prefixes, per_token, per_row),
        reader=reader,
        info=_info(spec, model, tokenizer, context)
        | {"device": str(runner.device), "modalities": ["text", "image"] if reader else ["text"]}
        | {"attention": runner.reading},
    )


def _prefix_room(spec: ModelSpec, size: int, per_token: int, per_row: int) -> Room:
    """What the prefix cache keeps in ``size`` bytes; LoadError where models.yml grants so few that it is nothing."""
    room = room_in(size, per_token, per_row)
    if spec.engine_args.get("prefix_cache") and size and per_row and not room.snapshots:
        need = (per_row + (SPAN + BLOCK) * per_token) / 1e6
        raise LoadError(f"{spec.id}: engine_args: prefix_cache: {need:.1f}MB is the least that its states can use.")
    return room


def _context(spec: ModelSpec, longest: int, room: int, bytes_per_token: int) -> int:
    """The context that model, models.yml and memory allow."""
    affordable = room // bytes_per_token // 64 * 64
    wanted = min(spec.context or longest, longest)
    if spec.context and spec.context > longest:
        told = "%s: context: %d is more than the %d tokens of the model itself, which count."
        log.warning(told, spec.id, spec.context, longest)
    if spec.context and affordable < wanted:
        need = wanted * bytes_per_token >> 20
        raise LoadError(
            f"{spec.id}: a context of {wanted} tokens needs {need} MB for keys and values, there are {room >> 20} MB. "
            "Lower context, or set engine_args: {kv_memory: …}."
        )
    return min(wanted, affordable)


def _eos(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer. Some configurations name one that the model lacks, or none by the number -1."""
    found: set[int] = set()
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    vocabulary = model.config.get_text_config().vocab_size
    return frozenset(token for token in found if 0 <= token < vocabulary)


def _info(spec: ModelSpec, model: Any, tokenizer: Any, context: int) -> dict[str, Any]:
    template = (
        tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else str(tokenizer.chat_template or "")
    )
    found = {
        "tool_family": "hermes" if spec.embedded else families.tool_family(template),
        "thinking": families.thinking_style(template),
    }
    info = {
        "engine": "transformers",
        "dtype": str(model.dtype).removeprefix("torch."),
        "context": context,
        "vocab_size": model.config.get_text_config().vocab_size,
        "parameters": model.num_parameters(),
        "template_tools": families.renders_tools(template),
        "sampling": embedded.SAMPLING if spec.embedded else _sampling(model.generation_config),
    }
    return info | {name: value for name, value in found.items() if value is not None}


def _sampling(generation: Any) -> dict[str, float]:
    """Defaults for requests, from a model's generation config."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    values = {name: getattr(generation, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}
