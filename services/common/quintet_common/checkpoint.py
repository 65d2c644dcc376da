"""What a model's files say of themselves before anything is loaded, without any framework.

How the weights of a language model are quantised, whether they are pickles, what a release lacks, and what to do then.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from quintet_common import embedded, headers, install, layout, vllm_program
from quintet_common.engine_args import Quantization

if TYPE_CHECKING:
    from quintet_common.entries import ModelSpec


class Libraries(NamedTuple):
    """What transformers needs for a method: Python modules, and the extra of quintet-chat that brings them."""

    modules: tuple[str, ...]
    extra: str


BITSANDBYTES = Libraries(("bitsandbytes",), "bitsandbytes")
LIBRARIES = {
    "bitsandbytes": BITSANDBYTES,
    "gptq": Libraries(("optimum", "gptqmodel"), "gptq"),
    "awq": Libraries(("gptqmodel",), "gptq"),
    "compressed-tensors": Libraries(("compressed_tensors",), "compressed-tensors"),
}
"""By ``quant_method`` of a config.json. What is not here needs nothing, or what transformers itself then names."""

EXPANDED = frozenset({"compressed-tensors", "fp8", "mxfp4"})
"""Methods whose weights become plain numbers when transformers loads them: its kernels for them are fetched from a hub
while the model runs, or it expands them at the first step anyway."""

AT_LOAD: tuple[str, ...] = get_args(Quantization)
"""What ``engine_args: {quantization: …}`` may be, for weights that are not quantised yet."""

KINDS = ("chat", "multimodal")
"""Of language models."""

VECTORS = ("embedding", "rerank")
"""Of models that read and do not write."""

VOICES = "spk2info.pt"
"""The file with the voices of a release of CosyVoice."""

_TYPES: dict[str, type] = {"architectures": list, "model_type": str}
"""Of what is looked at in a config.json."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_FOR_VLLM = frozenset({"gptq", "awq"})
_PICKLES = ("pytorch_model*.bin", "model*.bin", "consolidated*.pth")


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """The config.json in the model's folder; empty where there is none, and without what is of no use to anybody."""
    try:
        found = json.loads(layout.text_of(Path(spec.path).expanduser() / "config.json"))
    except (OSError, *headers.NO_JSON):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, _TYPES.get(name, object))}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says of its quantisation, or what it says of that of its text part; empty if nothing."""
    for part in (config, config.get("text_config")):
        found = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(found, dict):
            return found
    return {}


def method(config: dict[str, Any]) -> str | None:
    """How the weights are quantised, in the words of config.json; None if they are not."""
    found = settings(config)
    return str(found.get("quant_method") or "an unnamed method") if found else None


def wants_vllm(config: dict[str, Any]) -> bool:
    """Whether ``engine: auto`` is vLLM: it can run the model and transformers cannot without code from the folder, or
    has the kernels that the weights were quantised for."""
    return config.get("model_type") == "minicpmv" or method(config) in _FOR_VLLM


def on_vllm(spec: ModelSpec, config: dict[str, Any]) -> bool:
    """Whether vLLM runs the model with this config.json."""
    if spec.kind not in KINDS or spec.embedded is not None:
        return False
    return spec.engine == "vllm" or (spec.engine == "auto" and wants_vllm(config))


def obstacle(spec: ModelSpec, config: dict[str, Any]) -> str | None:
    """Why the model with this config.json cannot be loaded, and what to do; None where nothing is known to be wrong.

    Packages are looked for only where the chat service is installed.
    """
    if spec.kind == "tts":
        return _voiceless(spec)
    if spec.kind not in KINDS:
        return None
    text = pickled(spec)
    if text is None:
        text = _for_vllm(spec, config) if on_vllm(spec, config) else _for_transformers(spec, config)
    return None if text is None else f"{spec.id}: {text}"


def positions(spec: ModelSpec, config: dict[str, Any]) -> int | None:
    """The tokens that the model with this config.json was made for; None where that is not known."""
    if spec.embedded is not None:
        known = embedded.EMBEDDED.get(spec.embedded)
        return None if known is None else known.positions
    parts = [part for part in (config.get("text_config"), config) if isinstance(part, dict)]
    found = [part.get("max_position_embeddings") for part in parts]
    return next((each for each in found if isinstance(each, int) and each > 0), None)


def beyond(spec: ModelSpec, config: dict[str, Any]) -> str | None:
    """Why a model that makes vectors or scores cannot have the ``context`` of its entry; None where it may."""
    most = positions(spec, config)
    if spec.kind not in VECTORS or most is None or spec.context is None or spec.context <= most:
        return None
    return f"context: {spec.context} is more than the {most} positions of this model."


def lacks_vllm(spec: ModelSpec, config: dict[str, Any]) -> bool:
    """Whether all that is known to be wrong is that there is no vLLM here."""
    return on_vllm(spec, config) and pickled(spec) is None and _for_vllm(spec, config) is not None


def pickled(spec: ModelSpec) -> str | None:
    """Why the weights in the model's folder are not read; None where they are."""
    file = pickle_in(spec)
    return None if file is None or spec.engine_args.get("pickled_weights") is True else not_read(file)


def pickle_in(spec: ModelSpec) -> str | None:
    """The name of a pickle that is read for want of safetensors; None where there are these, or no folder."""
    folder = Path(spec.path).expanduser()
    if spec.embedded is not None or not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    return next((file.name for glob in _PICKLES for file in sorted(folder.glob(glob))), None)


def not_read(file: str) -> str:
    """The refusal of a pickle."""
    return (
        f"its weights are a pickle ({file}), and pickles are off unless its entry says "
        "engine_args: {pickled_weights: true}; they are read as plain tensors then. Safetensors need no setting."
    )


def _for_vllm(spec: ModelSpec, config: dict[str, Any]) -> str | None:
    if spec.engine_args.get("url") or find_spec("quintet_chat") is None or vllm_program.find(spec.path):
        return None
    why = "" if spec.engine == "vllm" else f"{_why_vllm(config)} is for vLLM; "
    other = " Or install what transformers needs for it, with engine: transformers." if method(config) else ""
    if method(config) == "gptq" and has_experts(config):
        other = " Or engine: transformers, which needs nothing and is slower."
    return f"{why}{vllm_program.ABSENT}{other}"


def _why_vllm(config: dict[str, Any]) -> str:
    quantised = method(config)
    return f"a model quantised by {quantised}" if quantised else f"a model of type {config.get('model_type')!r}"


def _for_transformers(spec: ModelSpec, config: dict[str, Any]) -> str | None:
    stored, asked = method(config), spec.engine_args.get("quantization")
    if asked is not None and stored is not None:
        return f"its weights are quantised already, by {stored}; leave out engine_args: quantization."
    if has_experts(config) and stored == "gptq":
        return None  # which the chat service reads itself
    if has_experts(config) and (asked is not None or stored in _FOR_VLLM):
        what = f"with engine_args: quantization: {asked}" if asked else f"that were quantised by {stored}"
        return f"transformers cannot load experts {what}. vLLM loads quantised experts: engine: vllm."
    needed = BITSANDBYTES if asked is not None else LIBRARIES.get(stored or "")
    lacking = (
        [name for name in needed.modules if find_spec(name) is None] if needed and find_spec("transformers") else []
    )
    if needed is None or not lacking:
        return None
    why = f"engine_args: quantization: {asked}" if asked else f"its weights are quantised by {stored}, which"
    packages = f"package{'s' if len(lacking) > 1 else ''} {' and '.join(map(repr, lacking))}"
    other = "" if asked else " (or run it with engine: vllm)"
    return f"{why} needs the Python {packages}{other}: {install.command('quintet-chat', needed.extra)}"


def has_experts(config: dict[str, Any]) -> bool:
    """Whether a model has layers of which each token takes a few."""
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    counts = [part.get(name) for part in parts for name in _EXPERTS]
    return any(isinstance(count, int) and count > 1 for count in counts)


def _voiceless(spec: ModelSpec) -> str | None:
    folder = Path(spec.path).expanduser()
    if spec.embedded is not None or not (folder / "cosyvoice.yaml").is_file() or spec.engine_args.get("voices"):
        return None
    return None if (folder / VOICES).is_file() else no_voices(folder, folder / VOICES)


def no_voices(folder: Path, file: Path) -> str:
    """What to do for a release of CosyVoice whose ``file`` of voices has none."""
    state = "empty" if file.is_file() else "missing"
    return (
        f"{folder} has no voices: {file} is {state}. CosyVoice-300M is published without; its voices are made from "
        f"recordings, which is not done here. Copy {VOICES} of CosyVoice-300M-SFT into the folder: its seven voices "
        f"fit. Or name such a file with engine_args: {{voices: FILE}}."
    )
